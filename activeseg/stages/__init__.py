"""The arrows of the loop: one module each, one public function. They meet only in `activeseg.loop`."""

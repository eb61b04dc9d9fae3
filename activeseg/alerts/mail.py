"""An alert as a plain mail, sent by SMTP."""

from __future__ import annotations

import re
import smtplib
import ssl
from email.message import EmailMessage
from email.policy import SMTP

from activeseg.config import AlertsSection
from activeseg.config.masking import masked
from activeseg.db.models import Alert
from activeseg.db.processes import this_host
from activeseg.errors import AlertError

TIMEOUT = 20.0
SUBJECT_LENGTH = 120


def send(section: AlertsSection, alert: Alert, *, password: str | None = None, timeout: float = TIMEOUT) -> None:
    """Send a mail to all of [alerts] email_to. Raises AlertError unless the server takes it for every one of them.

    With starttls a server that offers none gets nothing; certificates and names are checked. timeout: seconds for each step.
    """
    mail = message(section, alert)
    try:
        with _connected(section, timeout) as server:
            if section.smtp_user is not None:
                server.login(section.smtp_user, password or "")
            refused = server.send_message(mail)
    except (OSError, smtplib.SMTPException) as error:  # ssl.SSLError is an OSError
        raise AlertError(f"{section.smtp_host}:{section.smtp_port}: {masked(_told(error))}") from None
    if refused:
        # Those it was taken for have it: sending it again would send it to them again.
        raise PartlyRefused(f"{section.smtp_host} refused {', '.join(sorted(refused))}")


class PartlyRefused(AlertError):
    """The server took the mail for some of the addresses."""


def message(section: AlertsSection, alert: Alert) -> EmailMessage:
    """The mail: whatever stands in the alert, its headers are one line each."""
    mail = EmailMessage(policy=SMTP)
    mail["From"] = section.email_from
    mail["To"] = ", ".join(section.email_to)
    mail["Subject"] = subject(alert)
    mail["Date"] = alert.created_at
    mail["Message-ID"] = message_id(section, alert)
    mail["Auto-Submitted"] = "auto-generated"
    signed = f"-- \nactiveseg on {this_host()}, alert {alert.id}\n"
    mail.set_content(f"{_printable(alert.message)}\n\n{signed}", cte="quoted-printable")
    return mail


def subject(alert: Alert) -> str:
    """'activeseg: round failed: ...', one line."""
    first = (_printable(alert.message).strip().splitlines() or [""])[0]
    # The package takes encoded words in what it is given for encoded: line ends would come out of them again.
    first = first.replace("=?", "= ?")
    text = first if first.startswith("activeseg") else f"activeseg: {first}"
    return text if len(text) <= SUBJECT_LENGTH else f"{text[: SUBJECT_LENGTH - 3]}..."


def message_id(section: AlertsSection, alert: Alert) -> str:
    """The same for every attempt, so that a mail that comes twice can be told to be one."""
    domain = re.sub(r"[^A-Za-z0-9.-]", "", (section.email_from or "").rpartition("@")[2]) or "localhost"
    return f"<activeseg-{alert.id}-{alert.created_at:%Y%m%dT%H%M%S%f}@{domain}>"


def _printable(text: str) -> str:
    """Without control characters but line ends and tabs; other line ends (also those of Unicode) become \\n."""
    lines = "\n".join(text.splitlines())
    return "".join(char for char in lines if char in "\n\t" or (char.isprintable() and not "\ud800" <= char <= "\udfff"))


def _connected(section: AlertsSection, timeout: float) -> smtplib.SMTP:
    host, port, context = section.smtp_host or "", section.smtp_port, ssl.create_default_context()
    # Asking for this machine's full name may take a name server's time.
    name = this_host()
    if section.smtp_security == "tls":
        return smtplib.SMTP_SSL(host, port, local_hostname=name, timeout=timeout, context=context)
    server = smtplib.SMTP(host, port, local_hostname=name, timeout=timeout)
    if section.smtp_security == "starttls":
        try:
            server.starttls(context=context)
        except BaseException:
            server.close()
            raise
    return server


def _told(error: Exception) -> str:
    if isinstance(error, smtplib.SMTPRecipientsRefused):
        return "refused " + ", ".join(f"{address} ({_text(code, told)})" for address, (code, told) in error.recipients.items())
    if isinstance(error, smtplib.SMTPResponseException):
        return _text(error.smtp_code, error.smtp_error)
    return str(error) or type(error).__name__


def _text(code: int, told: bytes | str) -> str:
    return f"{code} {told.decode('utf-8', 'replace') if isinstance(told, bytes) else told}".strip()

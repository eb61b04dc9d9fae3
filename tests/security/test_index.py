"""One test, or more, for each class of weakness that programs of this kind have been known for.

The tests lie where what they try is tested; here stands where. Each tries a real attack on the real code.
"""

from __future__ import annotations

import ast

import pytest

from tests.docs.pages import ROOT

TESTS: dict[str, tuple[str, ...]] = {
    "default secrets": (
        "config/test_secrets.py::test_a_secret_is_made_once_for_its_owner_alone",
        "config/test_secrets.py::test_a_secret_file_others_may_use_is_refused_with_the_remedy",
        "config/test_secrets.py::test_what_keeps_nobody_out_or_fits_in_no_header_is_refused_wherever_it_came_from",
        "labelstudio/test_server.py::test_passwords_and_tokens_are_kept_where_only_the_owner_reads",
        "mlbackend/test_calls.py::test_the_password_file_is_made_for_its_owner_and_a_weak_password_refused",
        "security/test_code.py::test_no_password_or_token_stands_in_the_source",
    ),
    "open defaults": (
        "web/test_access.py::test_no_api_route_answers_without_the_token",
        "web/test_scopes.py::test_every_route_asks_for_a_scope_or_stands_in_a_short_list",
        "web/test_guard.py::test_a_rebound_name_gets_nothing_even_with_the_token",
        "web/test_access.py::test_off_the_loopback_it_does_not_listen_with_a_token_nobody_chose",
        "web/test_serve_command.py::test_off_the_loopback_it_refuses_in_one_line",
        "labelstudio/test_server.py::test_it_listens_on_the_loopback_address_only",
        "mlbackend/test_calls.py::test_nobody_gets_in_without_user_and_password",
    ),
    "requests forged by the server": (
        "security/test_fetching.py::test_a_redirect_to_a_host_nobody_named_is_refused_before_it_is_asked",
        "security/test_fetching.py::test_a_name_that_means_another_machine_a_moment_later_gains_nothing",
        "mlbackend/test_pictures.py::test_nothing_else_is_ever_asked_for",
        "mlbackend/test_pictures.py::test_a_redirect_is_not_followed",
    ),
    "filter leak": (
        "web/test_scopes.py::test_no_question_reaches_a_column_that_is_not_offered",
        "web/test_fuzz.py::test_no_question_the_schema_allows_or_forbids_is_a_server_error",
        "web/test_rankings_api.py::test_class_filter_ranks_by_the_sum_of_their_channel_entropies",
    ),
    "path traversal": (
        "storage/test_artifacts.py::test_no_location_leads_out_of_the_store",
        "storage/test_artifacts.py::test_a_link_out_of_the_store_is_refused",
        "storage/test_local_source.py::test_links_out_of_the_folder_are_neither_listed_nor_read",
        "storage/test_object_source.py::test_only_objects_below_the_url_are_read",
        "stages/test_restore.py::test_a_hostile_entry_costs_its_image_and_reads_nothing_outside",
        "web/test_images_api.py::test_what_is_no_image_id_is_refused",
    ),
    "pickle": (
        "nn/test_checkpoint.py::test_a_hostile_pickle_is_refused_with_the_remedy_and_does_not_run",
        "security/test_weights.py::test_weights_that_run_code_or_unpack_to_anything_are_refused_and_nothing_runs",
        "security/test_code.py::test_nothing_is_unpickled_but_tensors",
    ),
    "decompression": (
        "labelstudio/test_brush.py::test_a_header_of_another_size_is_refused_before_anything_is_allocated",
        "labelstudio/test_brush.py::test_a_stream_longer_than_its_pixels_can_need_is_refused_before_it_is_copied",
        "labelstudio/test_bitmask.py::test_pixels_that_unpack_to_more_than_their_size_are_refused_without_unpacking_them",
        "labelstudio/test_bitmask.py::test_texts_and_profiles_that_unpack_to_gigabytes_are_never_looked_at",
        "imaging/test_sandbox.py::test_what_kills_its_decoder_has_a_reason_and_the_next_image_is_decoded",
        "security/test_pool.py::test_a_file_that_kills_its_decoder_costs_one_row_and_the_sync_goes_on",
        "security/test_pool.py::test_hostile_files_of_every_kind_have_a_reason_each",
    ),
    "scripts in pages": (
        "web/test_pages.py::test_names_and_messages_are_text_and_nothing_comes_from_elsewhere",
        "web/test_pages.py::test_the_cookie_is_seen_by_no_script_and_sent_by_no_other_site",
        "web/test_pages.py::test_a_form_of_another_site_does_nothing",
        "web/test_browser.py::test_a_person_logs_in_looks_asks_for_a_round_and_logs_out",
    ),
    "shell": ("security/test_code.py::test_no_command_goes_through_a_shell",),
    "webhook authentication": (
        "web/test_hooks.py::test_whoever_does_not_know_the_secret_leaves_nothing",
        "web/test_hooks.py::test_the_bearer_token_is_no_secret_and_the_secret_no_token",
    ),
}


@pytest.mark.parametrize("weakness", TESTS)
def test_the_tests_of_a_weakness_are_there(weakness: str) -> None:
    assert TESTS[weakness]
    for place in TESTS[weakness]:
        file, _, name = place.partition("::")
        tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
        names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
        assert name in names, f"{place} is gone: name the test that took its place"

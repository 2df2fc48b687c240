"""The faults of docs/reliability.md, each with how often it was tried and how often the program survived.

    python bench/faults.py              all of them, five to ten minutes on two cores
    python bench/faults.py kill stream  those whose name holds one of these words

Every fault is a test in ``tests``; a test that repeats a fault within itself counts as often as it does. The exit code
is 1 if one was not survived.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# name: [(file, test, tries in each case)]
FAULTS: dict[str, list[tuple[str, str, int]]] = {
    "kill -9 while a checkpoint is saved": [("checkpoints", "test_fifty_kills_while_saving_lose_nothing", 50)],
    "kill -9 at a step, and the same command again": [
        ("reliability", "test_killed_at_random_steps_it_ends_as_if_it_had_not_been", 10)
    ],
    "SIGTERM or Ctrl-C; a second Ctrl-C": [
        ("reliability", "test_a_signal_ends_with_a_checkpoint_within_a_step", 1),
        ("reliability", "test_a_second_ctrl_c_ends_at_once", 1),
    ],
    "a full disk": [
        ("reliability", "test_a_full_disk_is_one_line_and_the_old_checkpoint_loads", 1),
        ("reliability", "test_a_preview_that_fails_does_not_stop_training", 1),
        ("checkpoints", "test_a_disk_that_fails_leaves_the_old_file_and_no_other", 1),
    ],
    "checkpoints that are cut": [("checkpoints", "test_a_cut_checkpoint_falls_back_to_the_one_before", 1)],
    "flipped bits": [("checkpoints", "test_a_flipped_bit_is_found", 20)],
    "a checkpoint that cannot be read now (memory, disk, permission)": [
        ("faults", "test_a_checkpoint_that_cannot_be_read_now_is_not_called_damaged", 1),
        ("faults", "test_a_checkpoint_of_the_future_is_not_deleted", 1),
        ("faults", "test_short_of_memory_is_told_from_damage", 1),
    ],
    "batches that are not a number": [
        ("reliability", "test_a_batch_that_is_not_a_number_is_skipped_and_named", 1),
        ("reliability", "test_three_in_a_row_restore_the_last_good_state_and_stop", 1),
    ],
    "a folder of 2,000 files of every kind": [("data", "test_two_thousand_files", 2000)],
    "images that are bombs or broken": [
        ("images", "test_bombs_cost_nothing", 4),
        ("images", "test_unusable_files_say_why", 1),
        ("untrusted", "test_a_line_of_pixels_is_no_square_of_gigabytes", 1),
        ("faults", "test_numbers_that_are_no_brightness_are_refused_with_the_reason", 1),
    ],
    "pickles": [("checkpoints", "test_pickles_are_never_opened", 1)],
    "mutated headers": [
        ("checkpoints", "test_a_thousand_mutated_headers_give_our_own_error_only", 1000),
        ("checkpoints", "test_hostile_headers", 1),
        ("checkpoints", "test_lying_header_lengths_allocate_nothing", 1),
    ],
    "hostile model files": [
        ("faults", "test_hostile_settings_of_a_model_are_refused", 1),
        ("faults", "test_hostile_classifiers_and_encoders_are_refused", 1),
        ("faults", "test_hostile_tables_are_refused", 1),
        ("faults", "test_merges_that_double_are_refused", 1),
    ],
    "hostile recipes and metadata": [
        ("faults", "test_hostile_recipes_are_refused", 1),
        ("faults", "test_hostile_grids_are_refused", 1),
        ("faults", "test_another_programs_metadata_is_read_in_linear_time", 3),
        ("faults", "test_a_graph_of_many_links_is_read_in_linear_time", 1),
        ("faults", "test_comments_of_any_type_are_no_recipe", 1),
    ],
    "LoRAs, new words and their settings": [
        ("untrusted", "test_notes_in_a_lora_are_one_sentence", 1),
        ("untrusted", "test_settings_of_a_lora_are_one_sentence", 1),
        ("untrusted", "test_settings_beside_a_lora_are_one_sentence", 1),
        ("untrusted", "test_a_lora_that_is_not_finite_is_refused_by_every_verb", 2),
        ("untrusted", "test_matrices_of_odd_shapes_are_refused", 1),
        ("untrusted", "test_rows_of_a_word_are_bounded", 1),
        ("untrusted", "test_headers_that_lie_about_shapes_allocate_nothing", 4),
        ("untrusted", "test_a_small_tucker_file_takes_little_memory", 1),
        ("untrusted", "test_a_thousand_patterns_and_layers_are_matched_in_linear_time", 1),
        ("untrusted", "test_a_pipe_is_not_waited_for", 2),
    ],
    "folders of other programs, and networks of conditions": [
        ("untrusted", "test_configurations_of_strangers_are_one_sentence_before_memory_is_taken", 1),
        ("untrusted", "test_networks_of_conditions_are_one_sentence", 1),
        ("untrusted", "test_an_index_of_strangers_names_no_other_place", 1),
        ("untrusted", "test_tables_beside_a_checkpoint_are_read_or_named", 1),
        ("untrusted", "test_json_of_strangers_is_one_kind_of_error", 2),
    ],
    "personalize: killed, and a place that cannot be written": [
        ("personalization", "test_it_goes_on_bit_for_bit", 1),
        ("personalization", "test_no_space", 1),
        ("untrusted", "test_a_place_whose_name_is_no_text_is_not_called_damaged", 1),
    ],
    "edit, explain, personalize: a full disk, a file for a folder, names with line breaks and odd bytes": [
        ("untrusted", "test_newer_verbs_end_with_a_sentence_where_they_cannot_write", 4),
        ("untrusted", "test_a_name_that_is_no_text_is_left_out_of_the_settings", 1),
        ("untrusted", "test_a_home_that_is_none_is_a_place_that_is_missing", 3),
    ],
    "long and deep texts": [
        ("faults", "test_long_and_deep_texts_are_refused_at_once", 1),
        ("faults", "test_a_long_word_is_encoded_as_before_and_soon", 1),
        ("faults", "test_folders_in_folders_are_read_to_a_depth", 1),
    ],
    "names from prompts": [("images", "test_names_stay_inside", 1)],
    "recipes without places or people": [
        ("faults", "test_every_result_carries_its_recipe", 1),
        ("faults", "test_comparisons_carry_the_recipe", 1),
        ("faults", "test_a_home_folder_does_not_name_its_user", 1),
        ("images", "test_recipe_tells_no_folders", 1),
        ("images", "test_no_metadata_on_request", 1),
    ],
    "two runs in one folder": [
        ("reliability", "test_a_second_run_in_the_folder_is_refused", 1),
        ("checkpoints", "test_the_lock_of_another_process_holds_until_it_is_killed", 1),
    ],
    "two processes: equal weights, as of one": [
        ("distributed", "test_two_processes_have_one_loss_and_equal_hashes", 1),
        ("distributed", "test_muon_moves_the_joined_weights_as_it_moves_those_of_one", 1),
    ],
    "two processes: one is killed, the launcher is killed, SIGTERM": [
        ("distributed", "test_one_killed_ends_the_other_and_the_checkpoint_is_whole", 1),
        ("distributed", "test_a_killed_launcher_leaves_no_workers", 1),
        ("distributed", "test_sigterm_reaches_all_processes_once", 1),
        ("faults", "test_a_rank_that_is_none_is_one_sentence", 1),
        ("faults", "test_processes_that_cannot_reach_each_other_are_refused", 1),
    ],
    "closed and full streams": [
        ("faults", "test_training_does_not_need_its_streams", 2),
        ("faults", "test_lost_output_is_an_error", 1),
    ],
    "files of the first version": [("golden", "test_every_kind_of_file_loads_and_computes_the_same", 1)],
    "broken packages; no home, locale or terminal": [
        ("faults", "test_doctor_tries_what_is_installed", 1),
        ("cli", "test_doctor_names_a_broken_torchvision", 1),
        ("reliability", "test_no_home_no_locale_no_terminal_forty_columns", 1),
    ],
    "no memory": [("faults", "test_out_of_memory_is_one_sentence", 1)],
    "help without torch": [("contracts", "test_help_imports_nothing_heavy", 1)],
    "memory stays flat": [("reliability", "test_memory_stays_flat", 1)],
}


def main(words: list[str]) -> int:
    """Run the tests of the chosen faults once, and print the table; the exit code."""
    chosen = {name: tests for name, tests in FAULTS.items() if not words or any(word in name for word in words)}
    nodes = sorted({f"tests/test_{file}.py::{test}" for tests in chosen.values() for file, test, _ in tests})
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-m", "slow or not slow", f"--junitxml={report}", *nodes]
        subprocess.run(command, cwd=ROOT, check=False)
        cases = list(ET.parse(report).iter("testcase"))
    lost = 0
    print("| fault | tried | survived |\n|---|---|---|")
    for name, tests in chosen.items():
        tried = survived = 0
        for file, test, tries in tests:
            for case in cases:
                if case.get("classname") == f"tests.test_{file}" and str(case.get("name")).split("[")[0] == test:
                    whole = case.find("skipped") is None
                    tried += tries * whole
                    survived += tries * (whole and case.find("failure") is None and case.find("error") is None)
        lost += tried - survived + (tried == 0)
        print(f"| {name} | {tried:,} | {survived:,} |")
    return int(lost > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

//! The traps into which other systems of this kind have walked, and the tests that would notice if this one
//! did. A test is named as `FILE::FUNCTION`; that each of them exists, and runs, is a test of its own.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, ensure};

use crate::Checked;
use crate::support::place::Place;

/// What goes wrong elsewhere, and which tests are about it.
const TRAPS: [(&str, &[&str]); 23] = [
    (
        "a redelivery after a reconnect runs the handler twice",
        &[
            "tests/it/bad_lines.rs::that_are_reset_again_and_again_lose_and_double_nothing",
            "tests/it/server_restarts.rs::the_line_to_the_broker_is_cut_again_and_again",
            "host/src/simulation.rs::no_schedule_loses_or_doubles_anything",
        ],
    ),
    (
        "the record of `done` is not atomic with the effect, and a timeout lets the effect through twice",
        &[
            "tests/it/time_limits.rs::an_attempt_that_is_out_of_time_applies_nothing",
            "tests/it/commit_in_doubt.rs::the_line_is_cut_after_the_server_has_committed",
            "host/src/simulation.rs::a_claim_outside_of_the_transaction_is_found_out",
        ],
    ),
    (
        "a fast path skips the comparison of payloads",
        &[
            "tests/it/reused_key.rs::within_one_batch_the_second_payload_is_parked",
            "tests/it/reused_key.rs::across_batches_the_second_payload_is_parked",
            "tests/it/reused_key.rs::while_the_first_payload_waits_the_second_is_parked",
            "tests/it/reused_key.rs::a_duplicate_behind_the_second_payload_is_no_mistake",
        ],
    ),
    (
        "a requeued, paused or replayed message is taken for a duplicate of itself, and dropped",
        &[
            "tests/it/failing_message.rs::commits_later_from_the_table",
            "tests/it/commit_in_doubt.rs::no_message_is_parked_as_a_duplicate_of_itself",
            "tests/it/operator.rs::replays_a_message_once_its_cause_is_gone",
            "tests/it/operator_consumers.rs::a_pause_outlives_a_restart",
            "tests/it/retention.rs::a_replay_after_expiry_is_applied_once",
        ],
    ),
    (
        "an outbox row is deleted while the broker has dropped its message",
        &[
            "tests/it/relay_trouble.rs::an_unroutable_message_stays_and_is_sent_once_the_binding_exists",
            "tests/it/outbox_rows.rs::that_no_frame_can_hold_end_no_connection",
            "host/src/simulation.rs::a_row_that_is_removed_before_its_confirm_is_found_out",
        ],
    ),
    (
        "a cursor over the outbox skips rows that commit late",
        &[
            "host/src/store/contract/outbox.rs::a_row_that_commits_after_a_later_one_is_taken",
            "host/src/store/contract/outbox.rs::a_row_that_commits_late_is_not_skipped",
            "tests/it/relay_trouble.rs::what_a_killed_host_left_behind_is_sent",
        ],
    ),
    (
        "the clean-up of the ledger blocks the inbox, never runs, or runs before the dead letters are replayed",
        &[
            "host/src/store/contract/retention.rs::the_sweep_forgets_what_has_expired_and_nothing_else",
            "host/src/store/contract/retention.rs::the_sweep_goes_page_by_page",
            "tests/it/retention.rs::a_replay_after_expiry_is_applied_once",
            "tests/it/retention.rs::a_replay_after_its_copy_was_forgotten_is_not_applied",
            "tests/it/skewed_clocks.rs::are_not_asked_where_the_database_has_one",
            "tests/it/two_hosts.rs::share_a_sqlite_file_between_lane_relay_sweep_and_commands",
        ],
    ),
    (
        "a lock that expires by time lets a second worker run what is still running",
        &[
            "host/src/store/contract/waiting.rs::a_row_that_runs_is_not_run_by_another_host",
            "tests/it/one_key_fifty_times.rs::on_two_hosts_it_is_applied_once",
            "tests/it/two_hosts.rs::do_not_wait_for_one_that_hangs",
        ],
    ),
    (
        "an empty id is a key, or a short hash of it collides",
        &[
            "host/src/key/tests.rs::what_is_missing_or_empty_is_never_guessed",
            "host/src/key/tests.rs::joined_parts_cannot_be_shifted_into_each_other",
            "host/src/store/contract/ledger.rs::keys_that_look_alike_stay_different",
            "tests/it/message_content.rs::keys_that_look_alike_stay_different",
        ],
    ),
    (
        "the relay sends row by row, and a long outbox stops it",
        &[
            "host/src/store/contract/outbox.rs::a_poll_of_a_long_outbox_reads_few_rows",
            "host/src/relay/queue/tests.rs::rows_without_an_ordering_key_go_at_once_and_in_order",
            "tests/it/relay_trouble.rs::bad_targets_do_not_hold_up_good_messages",
        ],
    ),
    (
        "the limit of attempts is multiplied by the number of hosts",
        &[
            "tests/it/one_key_fifty_times.rs::attempts_and_backoff_are_as_promised",
            "tests/it/one_key_fifty_times.rs::on_two_hosts_attempts_are_as_promised",
            "tests/it/two_hosts.rs::a_message_that_kills_the_host_is_parked_alone",
            "tests/it/two_hosts.rs::slow_neighbours_of_a_message_that_kills_the_host_are_not_parked",
            "tests/it/crash.rs::at",
        ],
    ),
    (
        "a statement that nothing ends takes its worker along, and each retry and restart begins another one",
        &[
            "tests/it/stuck_session.rs::costs_its_message_and_nothing_else",
            "tests/it/stuck_session.rs::outlives_a_restart_and_is_not_begun_again",
            "tests/it/time_limits.rs::a_statement_without_end_ends_with_its_message",
            "host/src/store/contract/postgres.rs::a_message_that_was_parked_beside_its_key_gets_its_fate_when_the_key_is_free",
            "host/src/store/contract/postgres.rs::statements_that_are_kept_prepared_are_bounded_in_bytes",
        ],
    ),
    (
        "what is acknowledged is in a file that nobody has, in another database, or in none that can hold it",
        &[
            "tests/it/wrong_store.rs::a_sqlite_file_that_was_moved_away_is_noticed_before_anything_is_acknowledged",
            "tests/it/wrong_store.rs::a_database_that_cannot_hold_all_text_is_refused_at_the_start",
            "host/src/store/contract/sqlite.rs::a_file_that_was_moved_replaced_or_deleted_ends_all_use_of_it",
            "host/src/store/contract/hostile.rs::no_hostile_content_is_a_broken_invariant",
            "host/src/store/postgres.rs::an_ipv6_address_reaches_what_it_names",
        ],
    ),
    (
        "two processes work on one SQLite file",
        &[
            "tests/it/bad_start.rs::a_second_host_on_one_sqlite_file_is_kept_out",
            "host/src/store/contract/sqlite.rs::a_second_process_is_kept_out_by_the_real_path",
        ],
    ),
    (
        "a swap keeps the old code, a mapped file is overwritten, a guest hangs or eats its host",
        &[
            "tests/it/hot_load/under_load.rs::two_hundred_swaps_under_load_lose_and_double_nothing",
            "tests/it/hot_load.rs::a_file_that_is_overwritten_while_it_is_read_is_loaded_in_the_end",
            "tests/it/hot_load/cache.rs::a_damaged_cache_is_compiled_again",
            "tests/it/time_limits.rs::a_statement_without_end_ends_with_its_message",
            "tests/it/failing_message.rs::takes_only_itself_out_of_its_batch",
            "tests/it/evil_guests.rs::hostile_debug_information",
            "host/src/sandbox/symbols/tests.rs::a_million_calls_that_are_inlined_into_one_another_end_no_host",
            "host/src/sandbox/plugins/shape.rs::types_in_types_are_bounded",
        ],
    ),
    (
        "a log line, an error or a dump shows a password, or what a stranger wrote as if it were the host's",
        &[
            "tests/it/evil_guests.rs::forged_log",
            "host/src/telemetry/tests.rs::nothing_in_a_record_can_steer_a_terminal_or_forge_a_line",
            "host/src/config/tests/diagnostics.rs::no_slip_of_the_finger_shows_a_secret",
        ],
    ),
    (
        "one call, or the calls of one row, keep a database busy that no timeout stops, or end the process",
        &[
            "host/src/store/contract/costs.rs::every_call_of_sqlite_comes_to_an_end_whatever_it_is_given",
            "host/src/store/contract/costs.rs::every_call_of_postgres_comes_to_an_end_whatever_it_is_given",
            "host/src/store/contract/sqlite.rs::json_is_as_sqlite_has_it_and_bytes_are_read_as_text",
            "tests/it/evil_guests.rs::endless_search",
            "tests/it/evil_guests.rs::huge_value",
        ],
    ),
    (
        "a broken new version takes the old one down with it",
        &["tests/it/hot_load.rs::a_broken_component_leaves_the_old_one_serving"],
    ),
    (
        "the broker drops a message that came back too often, or takes back one that was kept too long",
        &[
            "tests/it/declared_queues.rs::keep_what_comes_back",
            "tests/it/declared_queues.rs::with_a_negative_limit_are_refused_where_they_lose_messages",
            "tests/it/declared_queues.rs::are_warned_of_where_the_broker_limits_them",
            "tests/it/outage.rs::across_five_restarts_it_loses_no_message",
            "tests/it/outage.rs::longer_than_the_broker_waits_it_gives_messages_back_once",
            "tests/it/brake.rs::it_gives_back_what_the_broker_would_take_back",
        ],
    ),
    (
        "an acknowledgement reaches another channel than its delivery's",
        &[
            "host/src/simulation.rs::no_schedule_loses_or_doubles_anything",
            "host/src/ack/tests.rs::no_order_of_verdicts_acks_an_open_delivery_or_one_twice",
            "tests/it/server_restarts.rs::the_broker_is_restarted_and_then_killed",
        ],
    ),
    (
        "a neighbour, a web page or a forged request operates the daemon through an API that trusts the loopback",
        &[
            "tests/it/listeners.rs::let_in_nobody_without_the_token",
            "tests/it/listeners.rs::of_the_file_system_are_for_the_own_user",
            "host/src/http/tests.rs::who_may_not_ask_is_told_nothing_whatever_they_send",
            "host/src/http/admin/caller/tests.rs::a_web_page_is_turned_away",
            "host/src/http/token/tests.rs::a_link_is_never_followed",
        ],
    ),
    (
        "idle connections to a port for probes take the descriptors or the memory that the work needs",
        &[
            "tests/it/listeners.rs::that_are_flooded_hold_up_no_message_and_no_probe",
            "host/src/http/server/tests.rs::however_many_connections_say_nothing_the_next_one_is_answered",
            "host/src/http/tests.rs::a_second_upload_is_not_read_before_the_first_is_done",
        ],
    ),
    (
        "a message that the client library cannot read ends the connection of its neighbours, or the process",
        &[
            "host/src/amqp/walk/tests.rs::each_thing_that_lapin_cannot_read_is_refused_and_its_good_twin_is_not",
            "host/src/amqp/frames/tests.rs::a_content_header_that_lapin_cannot_read_is_replaced_by_an_empty_one",
            "host/src/amqp/frames/tests.rs::any_stream_ends_in_frames_that_lapin_reads",
            "tests/it/fuzz.rs::frames",
        ],
    ),
];

/// Whoever renames or removes a test that guards against a trap has to say what does so now.
pub async fn each_has_its_tests(_place: &Place) -> Checked {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let trials = std::fs::read_to_string(root.join("tests/it/main.rs"))?;
    let words = |text: &str| {
        text.split(|c: char| !c.is_alphanumeric() && c != '_')
            .map(str::to_owned)
            .collect::<BTreeSet<_>>()
    };
    let listed = words(&trials);
    let mut missing = Vec::new();
    for (trap, tests) in TRAPS {
        ensure!(!tests.is_empty(), "no test is about it: {trap}");
        for test in tests {
            let (file, function) = test.split_once("::").context("a test has a file")?;
            let text = std::fs::read_to_string(root.join(file)).unwrap_or_default();
            let stands = text.contains(&format!("fn {function}("));
            // A process test runs when it is listed, one of the host's when an attribute or a macro names it:
            // otherwise it would not be used, and would not compile.
            let runs = !file.starts_with("tests/it/") || listed.contains(function);
            if !(stands && runs) {
                missing.push(format!("{test} ({trap})"));
            }
        }
    }
    ensure!(missing.is_empty(), "not there, or not run: {missing:#?}");
    Ok(())
}

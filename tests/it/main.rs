//! The process tests: the real binary against real servers, one module per kind of trouble. Which tests guard
//! against the traps that other systems have walked into is listed in `traps`.
//!
//! They are one binary with a `main` of its own, so that the private servers start once, when
//! the first selected test asks for them, and stop when the last one is done.

mod ack_before_commit;
mod author;
mod bad_lines;
mod bad_messages;
mod bad_start;
mod bench;
mod brake;
mod commit_in_doubt;
mod crash;
mod declared_queues;
mod demo;
mod drain;
mod duplicates;
mod embedded;
mod endurance;
mod evil_guests;
mod exactly_once;
mod failing_message;
mod fuzz;
mod hot_load;
mod least_privilege;
mod listeners;
mod message_content;
mod metrics;
mod one_key_fifty_times;
mod operator;
mod operator_consumers;
mod operator_ledger;
mod operator_outbox;
mod outage;
mod outbox_rows;
mod random_schedules;
mod relay_trouble;
mod retention;
mod reused_key;
mod server_restarts;
mod service_manager;
mod skewed_clocks;
mod speculation;
mod sql_differential;
mod strict_order;
mod stuck_session;
mod support;
mod swallowed_errors;
mod time_limits;
mod traps;
mod two_hosts;
mod unreadable;
mod wrong_store;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::LazyLock;

use libtest_mimic::{Arguments, Failed, Trial};
use tokio::runtime::Runtime;

use support::declared::Declared;
use support::place::{self, Place};
use support::scene::Scene;
use support::servers::Release;
use support::{mount, servers, toolchain};

/// What a test returns. A failed assertion may also panic.
type Checked = anyhow::Result<()>;

static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| Runtime::new().expect("a runtime can be made at the start"));

/// Lists the tests of each module; a name is the module and the function. Tests that stand under
/// `each store` get a scene and run on PostgreSQL and on SQLite, those under `each queue` one for each kind of queue
/// that hosts declare, on each RabbitMQ; those under `each broker` get the RabbitMQ. They, and those under
/// `needs`, are skipped where something is missing on the machine.
macro_rules! trials {
    ($($module:ident {
        $(once: $($test:ident),* ;)?
        $(each store: $($on_each:ident),* ;)?
        $(each queue: $($on_queue:ident),* ;)?
        $(each broker: $($on_broker:ident),* ;)?
        $(needs $missing:path: $needy:ident;)*
    })*) => {{
        let mut trials = Vec::new();
        $(
            $($(trials.push(trial(
                concat!(stringify!($module), "::", stringify!($test)),
                |place| RUNTIME.block_on($module::$test(place)),
            ));)*)?
            $($(
                trials.push(trial(
                    concat!(stringify!($module), "::", stringify!($on_each), "::postgres"),
                    |place| RUNTIME.block_on(async {
                        $module::$on_each(place, Scene::postgres(place).await?).await
                    }),
                ));
                trials.push(trial(
                    concat!(stringify!($module), "::", stringify!($on_each), "::sqlite"),
                    |place| RUNTIME.block_on(async {
                        $module::$on_each(place, Scene::sqlite(place).await?).await
                    }),
                ));
            )*)?
            $($(for declared in Declared::ALL {
                let name = format!("{}::{}::{declared}", stringify!($module), stringify!($on_queue));
                trials.push(unless(
                    declared.release.is_there(),
                    trial(name.leak(), move |place| RUNTIME.block_on(async {
                        let scene = Scene::declared(place, declared).await?;
                        $module::$on_queue(place, scene).await
                    })),
                ));
            })*)?
            $($(for release in Release::ALL {
                let name = format!("{}::{}::{release}", stringify!($module), stringify!($on_broker));
                trials.push(unless(
                    release.is_there(),
                    trial(name.leak(), move |place| {
                        RUNTIME.block_on($module::$on_broker(place, release))
                    }),
                ));
            })*)?
            $(trials.push(unless(
                $missing(),
                trial(
                    concat!(stringify!($module), "::", stringify!($needy)),
                    |place| RUNTIME.block_on($module::$needy(place)),
                ),
            ));)*
        )*
        trials
    }};
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Most of them wait for servers most of the time.
    let processors = std::thread::available_parallelism().map_or(2, usize::from);
    arguments.test_threads.get_or_insert(processors * 3 / 2);
    let mut trials = trials! {
        exactly_once {
            once:
                six_sigkills_lose_and_double_nothing_on_postgres,
                six_sigkills_lose_and_double_nothing_on_sqlite,
                two_hosts_on_one_queue_are_killed_in_turn;
        }
        endurance {
            once: random_kills_lose_and_double_nothing;
        }
        embedded {
            once: sigkills_lose_and_double_nothing;
        }
        bench {
            once:
                measures_every_scenario_with_nothing_installed,
                measures_every_scenario_on_real_servers_and_leaves_nothing_there,
                an_unknown_scenario_is_told_which_there_are;
        }
        demo {
            once:
                shows_what_it_says_with_nothing_installed,
                shows_the_same_on_real_servers_and_leaves_nothing_there,
                an_interrupt_ends_its_consumers_and_removes_its_files,
                when_it_is_killed_its_consumers_die_with_it,
                servers_that_are_not_there_are_named;
        }
        server_restarts {
            once:
                the_broker_is_restarted_and_then_killed,
                the_database_is_restarted_and_then_killed,
                the_line_to_the_broker_is_cut_again_and_again,
                the_line_to_the_database_falls_silent_and_is_refused;
        }
        bad_lines {
            once:
                slow_ones_only_take_longer,
                that_are_reset_again_and_again_lose_and_double_nothing,
                that_go_dead_without_a_word_are_given_up,
                that_are_reset_in_the_answer_of_a_commit_leave_no_doubt;
        }
        commit_in_doubt {
            once:
                the_line_is_cut_before_the_server_sees_it,
                the_line_is_cut_after_the_server_has_committed,
                the_line_is_reset_while_the_server_is_at_it,
                no_message_is_parked_as_a_duplicate_of_itself,
                the_server_answers_it_with_a_warning,
                the_server_ends_the_session_in_the_middle_of_it;
        }
        ack_before_commit {
            once: does_not_happen_while_the_commit_is_on_its_way;
            each store: does_not_happen_at_any_other_moment;
        }
        failing_message {
            once: that_always_conflicts_takes_only_itself_out;
            each store:
                none_makes_one_transaction_of_its_batch,
                takes_only_itself_out_of_its_batch,
                commits_later_from_the_table,
                is_copied_where_its_consumer_says;
        }
        reused_key {
            each store:
                within_one_batch_the_second_payload_is_parked,
                across_batches_the_second_payload_is_parked,
                a_duplicate_behind_the_second_payload_is_no_mistake,
                while_the_first_payload_waits_the_second_is_parked,
                the_same_payload_written_differently_is_a_duplicate;
        }
        one_key_fifty_times {
            once:
                on_two_hosts_it_is_applied_once,
                on_two_hosts_while_the_first_waits_the_others_are_duplicates,
                on_two_hosts_when_the_first_is_parked_the_others_are_duplicates,
                on_two_hosts_attempts_are_as_promised,
                on_two_hosts_losing_the_database_of_one_is_no_attempt,
                on_two_hosts_losing_the_database_in_a_retry_is_no_attempt,
                losing_the_database_is_no_attempt;
            each store:
                in_one_batch_it_is_applied_once,
                in_adjacent_batches_it_is_applied_once,
                while_the_first_waits_the_others_are_duplicates,
                when_the_first_is_parked_the_others_are_duplicates,
                attempts_and_backoff_are_as_promised;
        }
        swallowed_errors {
            once:
                a_deadlock_leaves_nothing_behind,
                a_lock_timeout_leaves_nothing_behind,
                a_busy_sqlite_file_leaves_nothing_behind;
            each store:
                a_constraint_leaves_the_transaction_usable,
                a_conflict_clause_cannot_end_the_transaction,
                an_interrupted_statement_leaves_nothing_behind;
        }
        evil_guests {
            once: wasi_http, call_in_disguise;
            each store:
                spin, spin_in_host_calls, memory_bomb, table_bomb, recursion, stderr_flood, outbox_flood,
                ten_thousand_statements, huge_row_set, huge_statement, pg_sleep, commit, ddl, set_role,
                copy_program, dblink, advisory_lock, write_ledger, read_other_consumer, attach, open_socket,
                open_file, probe_clock_and_random, call_again_after_trap, endless_search, huge_value, cte_bomb,
                carbon_copy, forged_log, hostile_debug_information;
        }
        time_limits {
            once:
                an_attempt_that_is_out_of_time_applies_nothing,
                a_batch_of_slow_messages_is_over_when_its_time_is;
            each store: a_statement_without_end_ends_with_its_message;
        }
        stuck_session {
            once:
                costs_its_message_and_nothing_else,
                outlives_a_restart_and_is_not_begun_again;
        }
        wrong_store {
            once:
                a_sqlite_file_that_was_moved_away_is_noticed_before_anything_is_acknowledged,
                a_database_that_cannot_hold_all_text_is_refused_at_the_start;
        }
        least_privilege {
            once: is_enough_for_the_host_and_for_nothing_else;
        }
        listeners {
            once:
                that_are_flooded_hold_up_no_message_and_no_probe,
                let_in_nobody_without_the_token,
                of_the_file_system_are_for_the_own_user,
                have_all_files_that_the_system_gives;
        }
        sql_differential {
            once:
                what_is_allowed_touches_what_was_granted_on_postgres,
                what_is_allowed_touches_what_was_granted_on_sqlite;
        }
        fuzz {
            once: sql_rules, key, headers, config, frames;
        }
        speculation {
            once:
                of_a_batch_are_one_statement,
                of_a_table_with_a_trigger_run_one_by_one,
                of_a_table_that_gets_a_trigger_run_one_by_one_from_then_on,
                that_wait_for_a_lock_are_not_held_against_a_neighbour;
            each store:
                that_are_refused_are_heard_by_their_handler,
                that_were_answered_wrongly_do_not_fail_for_it,
                are_there_for_a_query_of_their_message;
        }
        random_schedules {
            once:
                leave_in_batches_what_they_leave_one_by_one_on_postgres,
                leave_in_batches_what_they_leave_one_by_one_on_sqlite,
                leave_in_several_lanes_what_they_leave_one_by_one;
        }
        message_content {
            once: ids_are_equal_in_every_attempt;
            each store:
                survives_retry_park_and_replay_unchanged,
                keys_that_look_alike_stay_different,
                equal_messages_without_idempotency_send_different_ids;
        }
        outbox_rows {
            each store: that_no_frame_can_hold_end_no_connection;
        }
        metrics {
            each store: tell_what_has_happened;
        }
        traps {
            once: each_has_its_tests;
        }
        relay_trouble {
            each store:
                an_unroutable_message_stays_and_is_sent_once_the_binding_exists,
                an_unroutable_message_may_be_dropped_where_the_target_says_so,
                bad_targets_do_not_hold_up_good_messages,
                messages_behind_one_that_cannot_be_sent_do_not_hold_up_the_drain,
                messages_behind_one_that_cannot_be_sent_do_not_stop_the_lanes,
                what_a_killed_host_left_behind_is_sent;
        }
        unreadable {
            once: large_ones_do_not_fill_the_memory;
            each store:
                are_parked_as_bytes_and_their_neighbours_run,
                are_one_row_however_often_they_come,
                large_ones_are_held_within_the_budget,
                what_is_too_large_to_park_goes_to_the_dead_letters,
                what_is_too_large_to_park_stays_where_nobody_keeps_it;
        }
        bad_messages {
            each store:
                are_parked_with_a_code_and_the_rest_flows_on,
                may_print_anything_before_they_crash,
                may_hold_any_bytes;
        }
        bad_start {
            once:
                an_unknown_field_is_named,
                a_wrong_type_is_named,
                all_problems_of_the_file_are_told_at_once,
                a_missing_plugin_is_named,
                a_file_that_is_no_component_is_named,
                a_core_module_is_no_component,
                a_component_of_another_world_is_refused,
                a_missing_queue_is_named,
                an_unreachable_database_is_named,
                an_unreachable_broker_is_named,
                a_second_host_on_one_sqlite_file_is_kept_out;
        }
        drain {
            once:
                with_sigterm_under_load_every_life_ends_well,
                a_second_signal_ends_it_at_once_and_loses_nothing,
                a_drain_that_takes_too_long_is_given_up,
                what_it_gives_up_is_held_against_no_message;
            each store: what_was_only_fetched_goes_back;
        }
        strict_order {
            once:
                is_kept_when_another_host_takes_over,
                is_kept_when_the_active_host_drains,
                is_kept_when_the_active_host_of_a_quorum_queue_drains,
                is_kept_when_a_pause_reaches_one_host_before_the_other,
                needs_a_queue_with_one_active_consumer,
                is_kept_on_the_embedded_broker;
            each store:
                is_kept_while_a_message_is_retried,
                is_kept_until_a_parked_message_is_replayed,
                goes_on_when_a_parked_message_is_discarded,
                at_its_cap_the_consumer_takes_no_more_and_loses_nothing,
                is_kept_through_sigkills;
        }
        duplicates {
            each store:
                get_the_stored_answer_where_the_consumer_replies,
                are_parked_where_the_consumer_wants_to_see_them;
        }
        retention {
            each store:
                a_late_copy_of_a_forgotten_message_is_parked,
                a_replay_after_expiry_is_applied_once,
                a_replay_after_its_copy_was_forgotten_is_not_applied,
                a_replay_of_a_parked_duplicate_after_expiry_is_not_applied;
        }
        skewed_clocks {
            once:
                are_not_asked_where_the_database_has_one,
                that_jump_ahead_and_back_apply_nothing_twice;
        }
        brake {
            once: it_gives_back_what_the_broker_would_take_back;
            each store:
                a_braked_consumer_keeps_what_it_holds,
                it_goes_on_by_itself_when_a_message_commits;
        }
        outage {
            once:
                across_five_restarts_it_loses_no_message,
                that_only_reads_is_no_messages_failure,
                longer_than_the_broker_waits_it_gives_messages_back_once,
                one_message_for_long_is_given_back_beside_busy_lanes,
                a_consumer_that_is_stopped_gives_back_what_it_holds;
        }
        service_manager {
            once: hears_of_start_life_and_stop;
        }
        two_hosts {
            once:
                apply_each_order_once_where_transactions_are_serializable,
                keep_the_order_of_a_key_when_one_dies_before_it_publishes,
                do_not_wait_for_one_that_hangs,
                do_not_wait_for_one_that_is_cut_off,
                lose_no_increment_of_one_state_key,
                share_a_sqlite_file_between_lane_relay_sweep_and_commands,
                a_message_that_kills_the_host_is_parked_alone_on_sqlite,
                a_message_without_a_key_that_kills_the_host_is_parked_on_sqlite;
            each queue:
                do_not_wait_for_one_that_was_killed,
                a_message_that_kills_the_host_is_parked_alone,
                a_message_without_a_key_that_kills_the_host_is_parked,
                slow_neighbours_of_a_message_that_kills_the_host_are_not_parked;
        }
        declared_queues {
            each queue: keep_what_comes_back;
            each broker:
                get_no_limit_by_the_version_of_the_broker,
                are_warned_of_where_the_broker_limits_them,
                with_a_negative_limit_are_refused_where_they_lose_messages,
                are_what_they_say_where_the_virtual_host_has_another_type,
                that_are_streams_are_refused;
            needs rabbitmq_4: keep_what_comes_back_by_a_policy;
        }
        hot_load {
            once:
                two_hundred_swaps_under_load_lose_and_double_nothing,
                running_messages_end_on_the_version_they_began_with,
                a_broken_component_leaves_the_old_one_serving,
                a_file_that_is_overwritten_while_it_is_read_is_loaded_in_the_end,
                a_link_that_is_swapped_is_followed,
                a_file_or_directory_that_is_deleted_and_made_again_is_loaded,
                a_damaged_cache_is_compiled_again,
                without_a_cache_everything_but_going_back_works,
                projects_that_name_their_plugins_alike_go_back_to_their_own,
                kill_9_at_every_step_of_a_swap_loses_and_doubles_nothing,
                what_a_killed_host_left_beside_the_file_is_removed,
                a_host_that_compiles_leaves_when_it_is_asked_to,
                an_operator_loads_and_rolls_back,
                a_warm_start_compiles_nothing;
            needs mount::mounts: a_full_cache_costs_the_copies_and_nothing_else;
            needs mount::mounts: a_cache_that_is_only_read_is_read;
        }
        author {
            once:
                a_new_rust_project_is_tested_built_and_swapped_while_it_runs,
                what_messages_do_is_recorded_and_compared,
                a_message_that_fails_is_a_failed_test_unless_it_should,
                a_handler_that_does_something_else_each_time_is_found,
                a_handler_that_another_attempt_changes_is_found,
                the_memory_that_is_told_is_the_message_s_own,
                a_test_on_a_database_leaves_nothing_there,
                a_missing_toolchain_is_named;
            needs toolchain::python: the_points_handler_in_python_credits_each_order_once;
            needs toolchain::javascript: the_points_handler_in_javascript_credits_each_order_once;
            needs toolchain::python: a_handler_in_python_uses_all_of_the_world;
            needs toolchain::javascript: a_handler_in_javascript_uses_all_of_the_world;
            needs toolchain::python: a_new_python_project_is_built_and_tested;
            needs toolchain::javascript: a_new_javascript_project_is_built_and_tested;
            needs toolchain::interpreters: the_handlers_in_other_languages_pass_their_own_tests;
            needs toolchain::bare: a_module_without_wasi_becomes_a_component_that_runs;
        }
        operator {
            each store:
                sees_why_a_message_was_parked,
                replays_a_message_once_its_cause_is_gone,
                discards_a_message_for_good,
                is_told_of_an_id_that_does_not_exist,
                is_refused_a_bulk_change_that_nobody_agreed_to,
                edits_a_body_and_the_original_is_a_duplicate_of_it,
                is_told_that_a_replay_of_what_was_committed_does_nothing,
                may_put_a_dead_letter_back_by_hand,
                publishes_a_file_and_reads_the_status;
        }
        operator_outbox {
            each store:
                sees_what_could_not_be_sent_and_sends_it,
                sends_a_delayed_message_now;
        }
        operator_ledger {
            each store:
                forgets_a_key_and_its_message_is_applied_again,
                takes_over_a_live_queue;
        }
        operator_consumers {
            once: a_pause_reaches_every_host;
            each store:
                a_pause_outlives_a_restart,
                other_rules_wait_for_the_last_host;
        }
    };
    for (name, point, stack) in crash::cases() {
        let test = move |place: &Place| RUNTIME.block_on(crash::at(place, point, stack));
        trials.push(unless(stack.is_there(), trial(name.leak(), test)));
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    if conclusion.has_failed() {
        eprintln!("{}", servers::log_tails());
        eprintln!("logs and data: {}", place::root().display());
    }
    servers::stop_shared();
    if !conclusion.has_failed() {
        place::remove_root();
    }
    conclusion.exit_code()
}

fn trial(name: &'static str, test: impl Fn(&Place) -> Checked + Send + 'static) -> Trial {
    Trial::test(name, move || {
        let place = Place::of(name).map_err(|error| format!("{error:#}"))?;
        let complaint = match catch_unwind(AssertUnwindSafe(|| test(&place))) {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => format!("{error:#}"),
            Err(panic) => message(panic.as_ref()),
        };
        Err(Failed::from(complaint + &place.evidence()))
    })
}

fn rabbitmq_4() -> Result<(), String> {
    Release::Four.is_there()
}

/// Skips a test where something that it needs is missing, and says what.
fn unless(missing: Result<(), String>, trial: Trial) -> Trial {
    match missing {
        Ok(()) => trial,
        Err(reason) => {
            eprintln!("skipped: {}: {reason}", trial.name());
            trial.with_ignored_flag(true)
        }
    }
}

/// The text of a panic.
fn message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("a panic without a text")
        .to_owned()
}

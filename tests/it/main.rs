//! The process tests: the real binary against real servers, one module per kind of trouble.
//!
//! They are one binary with a `main` of its own, so that the private servers start once, when
//! the first selected test asks for them, and stop when the last one is done.

mod ack_before_commit;
mod bad_lines;
mod bad_messages;
mod bad_start;
mod commit_in_doubt;
mod crash;
mod demo;
mod drain;
mod embedded;
mod endurance;
mod exactly_once;
mod failing_message;
mod message_content;
mod one_key_fifty_times;
mod operator;
mod random_schedules;
mod relay_trouble;
mod reused_key;
mod server_restarts;
mod support;
mod swallowed_errors;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::LazyLock;

use libtest_mimic::{Arguments, Failed, Trial};
use tokio::runtime::Runtime;

use support::place::{self, Place};
use support::scene::Scene;
use support::servers;

/// What a test returns. A failed assertion may also panic.
type Checked = anyhow::Result<()>;

static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| Runtime::new().expect("a runtime can be made at the start"));

/// Lists the tests of each module; a name is the module and the function. Tests that stand under
/// `each store` get a scene and run on PostgreSQL and on SQLite.
macro_rules! trials {
    ($($module:ident {
        $(once: $($test:ident),* ;)?
        $(each store: $($on_each:ident),* ;)?
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
        )*
        trials
    }};
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
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
                the_server_answers_it_with_a_warning,
                the_server_ends_the_session_in_the_middle_of_it;
        }
        ack_before_commit {
            once: does_not_happen_while_the_commit_is_on_its_way;
            each store: does_not_happen_at_any_other_moment;
        }
        failing_message {
            each store:
                takes_only_itself_out_of_its_batch,
                commits_later_from_the_table;
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
        random_schedules {
            once:
                leave_in_batches_what_they_leave_one_by_one_on_postgres,
                leave_in_batches_what_they_leave_one_by_one_on_sqlite;
        }
        message_content {
            once: ids_are_equal_in_every_attempt;
            each store:
                survives_retry_park_and_replay_unchanged,
                keys_that_look_alike_stay_different,
                equal_messages_without_idempotency_send_different_ids;
        }
        relay_trouble {
            each store:
                an_unroutable_message_stays_and_is_sent_once_the_binding_exists,
                an_unroutable_message_may_be_dropped_where_the_target_says_so,
                bad_targets_do_not_hold_up_good_messages,
                what_a_killed_host_left_behind_is_sent;
        }
        bad_messages {
            each store:
                are_parked_with_a_code_and_the_rest_flows_on,
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
                a_second_signal_ends_it_at_once_and_loses_nothing;
            each store: what_was_only_fetched_goes_back;
        }
        operator {
            each store:
                sees_why_a_message_was_parked,
                replays_a_message_once_its_cause_is_gone,
                discards_a_message_for_good,
                is_told_of_an_id_that_does_not_exist,
                publishes_a_file_and_reads_the_status;
        }
    };
    for (name, point, stack) in crash::cases() {
        let test = move |place: &Place| RUNTIME.block_on(crash::at(place, point, stack));
        trials.push(trial(name.leak(), test));
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

/// The text of a panic.
fn message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("a panic without a text")
        .to_owned()
}

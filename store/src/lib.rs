//! The log: what passes between the stages, and the durable place where it is kept.
//!
//! This crate owns the types that cross stages ([`Record`], [`MaskedCopy`], [`Label`], [`SourceCursor`],
//! [`Group`]) and the append-only log that holds them: [`LogWriter`], [`LogReader`], [`stat`], [`verify`]. The module
//! [`log`] specifies its bytes, its invariants and its recovery.
//!
//! - Sequence numbers have no holes; a group of entries is in the log whole or not at all.
//! - Readers never see what is not durable; what was durable is never lost silently.
//! - The cursors in the log are the only record of how far ingestion has got.
//!
//! It knows nothing of models, tokenizers or training, gives no sequence numbers, and keeps one writer away from another
//! only; the lock on a state folder is the daemon's.
//!
//! # What holds each promise
//!
//! Tests are in `tests/log`, named by module.
//!
//! | promise | held by |
//! | --- | --- |
//! | What is appended comes back, bit for bit with exact precision | `round_trip::any_entries_come_back`, `round_trip::floats_keep_their_bits` |
//! | Compact precision keeps log-probabilities and log-sum-exps within 1/32 | `model::whatever_happens_nothing_durable_is_lost`, `tools::another_precision` |
//! | Nothing malformed gets into a log, and refusing it harms nothing | `round_trip::malformed_entries_are_refused` |
//! | A block is in the log whole or not at all; sequence numbers have no holes | `crash::a_crash_at_any_operation_loses_nothing_durable`, `recovery::row_6_blocks_out_of_order_are_corrupt` |
//! | What was called durable survives a crash at any operation, whatever unsynced writes and names survive | `crash::a_crash_at_any_operation_loses_nothing_durable`, `crash::a_crash_during_recovery_loses_nothing_durable`, `crash::a_crash_after_an_error_loses_nothing_durable`, `model::whatever_happens_nothing_durable_is_lost` |
//! | and a process that is killed at any moment | `sigkill::a_writer_killed_at_any_moment_loses_nothing_durable` |
//! | Each sync is needed, and asked of the operating system | `tests/store/mutate_syncs`, `std_disk::a_sync_reaches_the_kernel`, `std_disk::folders_are_synced_or_missed` |
//! | After a failed write or sync the writer stops for good and repeats the cause | `crash::after_a_failure_the_writer_stops_for_good`, `crash::an_error_at_any_operation_loses_nothing_durable` |
//! | Short and interrupted writes and reads are continued | `crash::a_short_write_is_continued`, `crash::interrupted_writes_are_repeated`, `reading_fails::interrupted_and_short_reads_are_continued` |
//! | A full disk is told before anything is written, and the log goes on when there is room | `crash::no_space_says_what_to_do`, `retention::a_full_disk_is_no_failure_of_the_log`, `room::without_room_nothing_is_written_and_the_log_goes_on` |
//! | A disk that fails to read is an error, never taken for damage or an end | `reading_fails::a_failing_read_is_no_damage`, `reading_fails::a_failing_read_during_recovery_loses_nothing` |
//! | Readers never see what is not durable while a writer lives | `following::durable_is_respected_from_outside`, `following::durable_is_respected_when_the_positions_are_damaged`, `following::durable_is_respected_when_a_writer_comes_while_a_reader_looks` |
//! | Readers follow a writer, from inside its process and from outside | `following::a_reader_in_the_same_process_follows`, `following::a_reader_in_another_place_follows` |
//! | There is one writer at a time | `crash::a_second_writer_is_refused` |
//! | Every truncation is noticed or harmless, and costs nothing before it | `damage::every_truncation_of_an_unsealed_exact_log`, `damage::every_truncation_of_a_sealed_exact_log`, `damage::every_truncation_of_an_unsealed_compact_log`, `damage::every_truncation_of_a_sealed_compact_log` |
//! | So is every flipped bit | `damage::every_flipped_bit_of_an_unsealed_exact_log`, `damage::every_flipped_bit_of_a_sealed_exact_log`, `damage::every_flipped_bit_of_an_unsealed_compact_log`, `damage::every_flipped_bit_of_a_sealed_compact_log`, `damage::a_damaged_position_file_is_harmless` |
//! | Each row of the recovery table holds | `recovery::row_1_a_new_log`, `recovery::row_4_a_torn_tail_is_cut_and_kept`, `recovery::row_5_damage_before_durable_data_is_corrupt`, `recovery::row_19_damage_in_a_sealed_segment_is_found_when_read` |
//! | A torn tail is never thrown away | `crash::a_torn_tail_is_never_lost` |
//! | A log that is too short for what refers to it is refused, and nothing is cut | `recovery::row_15_a_log_shorter_than_what_refers_to_it_is_corrupt` |
//! | No bytes make reading panic, and what is read could have been written | `fuzzing::segments_of_any_bytes_are_read_or_refused`, `fuzzing::blocks_of_any_columns_are_read_or_refused`, `fuzzing::labels_of_any_bytes_are_read_or_refused` |
//! | A log is continued only with the settings and teachers that it was made with | `identity::every_difference_is_told`, `recovery::row_16_another_identity_is_refused`, `recovery::row_17_an_appended_teacher_begins_a_segment` |
//! | Retention removes nothing that is needed, keeps held-out records, and survives a crash at any operation | `retention::what_is_needed_stays`, `retention::held_out_records_are_kept_as_they_were`, `retention::a_crash_at_any_operation_loses_nothing` |
//! | Reading past damage leaves out only what is damaged, and says what | `salvage::no_flip_is_silent`, `salvage::a_damaged_block_is_left_out` |
//! | Texts come back, are there only where a log keeps them, and logs without are what they were | `round_trip::any_entries_come_back`, `round_trip::text_is_kept_from_where_that_is_switched_on`, `retention::texts_of_held_out_records_are_kept_when_others_are_not` |
//! | A log with a teacher more has the same entries, numbers and cursors, and goes on where it was interrupted | `extending::entries_numbers_and_blocks_stay`, `extending::it_goes_on_where_it_was_interrupted`, `extending::what_retention_removed_is_not_there` |
//! | A mirror has the bytes of the log that it follows, readers see only what is durable there, and a crash at any operation loses nothing | `mirroring::a_mirror_has_the_same_bytes`, `mirroring::what_does_not_belong_there_is_refused_and_harms_nothing`, `mirroring::a_mirror_begins_where_retention_left_the_log`, `mirroring::a_crash_at_any_operation_loses_nothing_of_a_mirror` |
//! | Copies and merged logs hold what their sources held | `tools::a_copy_of_everything_is_the_same_log`, `tools::logs_of_different_sources_are_joined`, `tools::damage_stops_a_copy_and_leaves_nothing` |

pub mod arrivals;
pub mod cursor;
pub mod group;
pub mod identity;
pub mod log;
pub mod position;
pub mod pulse;
pub mod record;
pub mod stage;

pub use arrivals::{Arrivals, Delays};
pub use cursor::SourceCursor;
pub use group::{BatchPlan, Group};
pub use identity::{Identity, TAIL_SAMPLES_KEY, TeacherEntry};
pub use log::{
    LanguageStat, LogOptions, LogReader, LogStat, LogWriter, Precision, PreparedBlock, Recovery, StoreError, Torn,
    Verification, dump, stat, verify,
};
pub use position::{DurablePosition, SequenceNumber};
pub use record::{ComputedIn, Entry, Label, MaskedCopy, Payload, Record, Skip, Span};

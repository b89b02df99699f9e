//! What requests may do.

use culvert_nbd::Errno;
use culvert_nbd::check::{Job, Rules, Verdict};
use culvert_nbd::export::{BlockSizes, Features, ZeroMode};
use culvert_nbd::proto::flags::CommandFlags;
use culvert_nbd::proto::request::{Command, Request};
use culvert_nbd::proto::{ParseError, Style};

const SIZE: u64 = 1 << 20;

fn rules(style: Style) -> Rules {
    let block_sizes = BlockSizes { minimum: 512, preferred: 4096, maximum: 64 << 10 };
    Rules { style, features: Features::ALL, block_sizes, has_contexts: true }
}

fn request(command: Command, offset: u64, length: u64) -> Request {
    Request { flags: CommandFlags::NONE, command, cookie: 1, offset, length }
}

fn refusal(rules: &Rules, request: &Request) -> (Errno, u64) {
    match rules.check(request, SIZE) {
        Ok(Verdict::Refuse { errno, payload, .. }) => (errno, payload),
        other => panic!("{request:?} came to {other:?}"),
    }
}

fn job(rules: &Rules, request: &Request) -> Job {
    match rules.check(request, SIZE) {
        Ok(Verdict::Run(job)) => job,
        other => panic!("{request:?} came to {other:?}"),
    }
}

#[test]
fn beyond_the_end_is_no_space_for_what_writes_and_invalid_for_the_rest() {
    let rules = rules(Style::Simple);
    let commands = [
        (Command::Read, Errno::Inval),
        (Command::Write, Errno::NoSpc),
        (Command::WriteZeroes, Errno::NoSpc),
        (Command::Trim, Errno::Inval),
        (Command::Cache, Errno::Inval),
        (Command::BlockStatus, Errno::Inval),
    ];
    for (command, expected) in commands {
        let payload = if command == Command::Write { 512 } else { 0 };
        job(&rules, &request(command, SIZE - 512, 512));
        for offset in [SIZE, SIZE + 512, u64::MAX - 511] {
            let refused = refusal(&rules, &request(command, offset, 512));
            assert_eq!(refused, (expected, payload), "{command:?} at {offset}");
        }
        let refused = refusal(&rules, &request(command, SIZE - 512, 1024));
        assert_eq!(refused.0, expected, "{command:?} across the end");
    }
}

#[test]
fn unaligned_and_empty_ranges_are_invalid() {
    let rules = rules(Style::Structured);
    for command in Command::ANSWERED {
        if command == Command::Flush {
            assert_eq!(job(&rules, &request(command, 77, 33)), Job::Flush);
            continue;
        }
        for (offset, length) in [(1, 512), (0, 511), (256, 256), (0, 0)] {
            let refused = refusal(&rules, &request(command, offset, length));
            assert_eq!(refused.0, Errno::Inval, "{command:?} at {offset}+{length}");
        }
    }
}

#[test]
fn only_payloads_are_held_to_the_maximum_block_size() {
    let rules = rules(Style::Simple);
    let too_long = (64 << 10) + 512;
    for command in [Command::Read, Command::Write] {
        assert_eq!(refusal(&rules, &request(command, 0, too_long)).0, Errno::Inval);
    }
    for command in [Command::Trim, Command::WriteZeroes, Command::Cache, Command::BlockStatus] {
        job(&rules, &request(command, 0, too_long));
    }
}

#[test]
fn a_refused_payload_is_skipped_unless_it_is_absurd() {
    let rules = rules(Style::Simple);
    let skipped = refusal(&rules, &request(Command::Write, 0, 64 << 20));
    assert_eq!(skipped, (Errno::NoSpc, 64 << 20));
    let absurd = rules.check(&request(Command::Write, 0, (64 << 20) + 1), SIZE);
    assert!(matches!(absurd, Err(ParseError::TooLong { .. })));
}

#[test]
fn read_only_exports_refuse_changes() {
    let mut rules = rules(Style::Simple);
    rules.features.read_only = true;
    for command in [Command::Write, Command::Trim, Command::WriteZeroes] {
        assert_eq!(refusal(&rules, &request(command, 0, 512)).0, Errno::Perm);
    }
    for command in [Command::Read, Command::Flush, Command::Cache, Command::BlockStatus] {
        job(&rules, &request(command, 0, 512));
    }
}

#[test]
fn what_was_not_offered_is_invalid() {
    let bare =
        Rules { features: Features::default(), has_contexts: false, ..rules(Style::Structured) };
    for command in Command::ANSWERED.into_iter().chain([Command::Other(8), Command::Other(999)]) {
        let request = request(command, 0, 512);
        if matches!(command, Command::Read | Command::Write) {
            job(&bare, &request);
            let fua = Request { flags: CommandFlags::FUA, ..request };
            assert_eq!(refusal(&bare, &fua).0, Errno::Inval, "FUA with {command:?}");
        } else {
            assert_eq!(refusal(&bare, &request).0, Errno::Inval, "{command:?}");
        }
    }
}

#[test]
fn each_flag_is_legal_with_its_commands_only() {
    let flags = [
        CommandFlags::FUA,
        CommandFlags::NO_HOLE,
        CommandFlags::DF,
        CommandFlags::REQ_ONE,
        CommandFlags::FAST_ZERO,
        CommandFlags(1 << 9),
    ];
    for command in Command::ANSWERED {
        for flag in flags {
            let is_legal = match flag {
                CommandFlags::FUA => true,
                CommandFlags::NO_HOLE | CommandFlags::FAST_ZERO => command == Command::WriteZeroes,
                CommandFlags::DF => command == Command::Read,
                CommandFlags::REQ_ONE => command == Command::BlockStatus,
                _ => false,
            };
            let request = Request { flags: flag, ..request(command, 0, 512) };
            if is_legal {
                job(&rules(Style::Structured), &request);
            } else {
                let refused = refusal(&rules(Style::Structured), &request);
                assert_eq!(refused.0, Errno::Inval, "{flag:?} with {command:?}");
            }
        }
    }
    let df = Request { flags: CommandFlags::DF, ..request(Command::Read, 0, 512) };
    assert_eq!(refusal(&rules(Style::Simple), &df).0, Errno::Inval, "DF in a simple reply");
}

#[test]
fn flags_reach_the_job() {
    let rules = rules(Style::Structured);
    let with = |command, flags| job(&rules, &Request { flags, ..request(command, 0, 512) });
    assert_eq!(
        with(Command::Read, CommandFlags::DF),
        Job::Read { offset: 0, length: 512, df: true }
    );
    assert_eq!(
        with(Command::Write, CommandFlags::FUA),
        Job::Write { offset: 0, length: 512, fua: true }
    );
    assert_eq!(
        with(Command::Trim, CommandFlags::FUA),
        Job::Trim { offset: 0, length: 512, fua: true }
    );
    let all = CommandFlags::FUA | CommandFlags::NO_HOLE | CommandFlags::FAST_ZERO;
    let mode = ZeroMode { fua: true, no_hole: true, fast: true };
    assert_eq!(with(Command::WriteZeroes, all), Job::WriteZeroes { offset: 0, length: 512, mode });
    assert_eq!(
        with(Command::BlockStatus, CommandFlags::REQ_ONE),
        Job::BlockStatus { offset: 0, length: 512, one: true }
    );
}

#[test]
fn extended_requests_say_which_length_is_a_payload() {
    let rules = rules(Style::Extended);
    let write = Request { flags: CommandFlags::PAYLOAD_LEN, ..request(Command::Write, 0, 512) };
    assert_eq!(job(&rules, &write), Job::Write { offset: 0, length: 512, fua: false });
    // QEMU's client does not say it.
    let silent = request(Command::Write, 0, 512);
    assert_eq!(job(&rules, &silent), Job::Write { offset: 0, length: 512, fua: false });
    assert_eq!(refusal(&rules, &request(Command::Write, SIZE, 512)), (Errno::NoSpc, 512));
    // A payload with any other command is skipped and refused.
    for command in [Command::Read, Command::BlockStatus, Command::Other(77)] {
        let loaded = Request { flags: CommandFlags::PAYLOAD_LEN, ..request(command, 0, 512) };
        assert_eq!(refusal(&rules, &loaded), (Errno::Inval, 512), "{command:?}");
    }
    let zeroes = Request { length: SIZE, ..request(Command::WriteZeroes, 0, 0) };
    job(&rules, &zeroes);
    let endless = Request { length: u64::MAX - 511, ..zeroes };
    assert_eq!(refusal(&rules, &endless), (Errno::NoSpc, 0));
}

#[test]
fn disconnecting_is_always_legal() {
    for style in [Style::Simple, Style::Structured, Style::Extended] {
        let leave = request(Command::Disconnect, 3, 5);
        assert_eq!(rules(style).check(&leave, SIZE), Ok(Verdict::Disconnect));
    }
}

//! Names the capability that is missing when the kernel answers EPERM.

use std::{error::Error, fs, io};

const NEEDED: [(u32, &str); 3] = [(12, "CAP_NET_ADMIN"), (38, "CAP_PERFMON"), (39, "CAP_BPF")];
const CAP_SYS_ADMIN: u32 = 21;

/// The error number of the system call at the root of `error`, if there is one.
pub(crate) fn os_error(error: &(dyn Error + 'static)) -> Option<i32> {
    let mut current = Some(error);
    while let Some(error) = current {
        if let Some(io_error) = error.downcast_ref::<io::Error>() {
            return io_error.raw_os_error();
        }
        current = error.source();
    }
    None
}

/// `error` and what caused it, in one line.
pub(crate) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut current = error.source();
    while let Some(error) = current {
        text.push_str(": ");
        text.push_str(&error.to_string());
        current = error.source();
    }
    text
}

/// What this process lacks to load and attach programs, for an operator to read.
pub(crate) fn missing() -> String {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    describe(effective(&status))
}

fn effective(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

fn describe(effective: Option<u64>) -> String {
    let Some(effective) = effective else {
        return "CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN".to_owned();
    };
    let lacking = lacking(effective);
    if lacking.is_empty() {
        "permission beyond its capabilities (kernel lockdown or a security module refuses)"
            .to_owned()
    } else {
        lacking.join(", ")
    }
}

fn lacking(effective: u64) -> Vec<&'static str> {
    let has = |bit: u32| effective & (1 << bit) != 0;
    // CAP_SYS_ADMIN stands in for the two that were once part of it.
    NEEDED
        .iter()
        .filter(|(bit, _)| !has(*bit) && (*bit == 12 || !has(CAP_SYS_ADMIN)))
        .map(|(_, name)| *name)
        .collect()
}

/// Whether this thread lacks a capability that the programs need.
pub(crate) fn lacks_any() -> bool {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    effective(&status).is_none_or(|effective| !lacking(effective).is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_missing_capability_is_named() {
        assert_eq!(describe(Some(0)), "CAP_NET_ADMIN, CAP_PERFMON, CAP_BPF");
        assert_eq!(describe(Some(1 << 12)), "CAP_PERFMON, CAP_BPF");
        assert_eq!(describe(Some(1 << 21)), "CAP_NET_ADMIN");
        assert!(describe(Some(u64::MAX)).contains("lockdown"));
    }

    #[test]
    fn capabilities_are_read_from_the_status_file() {
        assert_eq!(effective("Name:\tx\nCapEff:\t000001ffffffffff\n"), Some(0x1ff_ffff_ffff));
        assert_eq!(effective("Name:\tx\n"), None);
    }

    #[test]
    fn the_error_number_is_found_at_the_end_of_the_chain() {
        let error = aya::maps::MapError::CreateError {
            name: "xsks".to_owned(),
            io_error: io::Error::from_raw_os_error(libc::EPERM),
        };
        assert_eq!(os_error(&aya::EbpfError::MapError(error)), Some(libc::EPERM));
    }
}

//! Memory of a dataplane, its own and what the kernel keeps for it.

use std::fmt;
use std::fs;

use culvert_tests::Topology;

/// A moment's memory, in KiB.
#[derive(Copy, Clone, Debug)]
pub(crate) struct Memory {
    /// Resident in the process.
    resident_kib: i64,
    /// Not available to anybody on the machine.
    machine_kib: i64,
}

/// What one of many takes, in bytes.
pub(crate) struct Share {
    resident: i64,
    machine: i64,
}

impl Memory {
    /// Of the dataplane of host A.
    pub(crate) fn now(topology: &mut Topology) -> Result<Memory, String> {
        let culvert = topology.culvert[0].as_mut().ok_or("host A runs no culvert")?;
        let pid = culvert.process().pid();
        let resident_kib = field(&format!("/proc/{pid}/status"), "VmRSS:")?;
        let total = field("/proc/meminfo", "MemTotal:")?;
        let available = field("/proc/meminfo", "MemAvailable:")?;
        Ok(Memory { resident_kib, machine_kib: total - available })
    }

    /// What was added since.
    pub(crate) fn since(&self, before: &Memory) -> Memory {
        Memory {
            resident_kib: self.resident_kib - before.resident_kib,
            machine_kib: self.machine_kib - before.machine_kib,
        }
    }

    /// The share of one of `count`.
    pub(crate) fn per(&self, count: usize) -> Share {
        let each = |kib: i64| kib * 1024 / i64::try_from(count.max(1)).unwrap_or(i64::MAX);
        Share { resident: each(self.resident_kib), machine: each(self.machine_kib) }
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Share { resident, machine } = self;
        write!(f, "{resident} bytes in the process, {machine} of the machine (kernel included)")
    }
}

fn field(path: &str, name: &str) -> Result<i64, String> {
    let text = fs::read_to_string(path).map_err(|e| format!("{path}: {e}"))?;
    let value = text.lines().find_map(|line| line.strip_prefix(name));
    let kib = value.and_then(|value| value.trim().trim_end_matches("kB").trim().parse().ok());
    kib.ok_or_else(|| format!("{path}: no {name}"))
}

//! The lab: a guest with another kernel, for what the kernel of this machine lacks.
//!
//! `scripts/setup-lab` prepares kernels in the folder `lab` of the target folder. A [`Guest`] boots one of them in QEMU
//! by emulation alone, so it needs no `/dev/kvm` and no privilege. Its root is the host's own file system, under a layer
//! of memory that takes what is written: programs, libraries and test binaries are where they always are. What happens
//! in it comes back through a shared folder.
//!
//! A test that belongs into a guest begins with [`enter`]: outside, that runs the same test again in a guest; inside,
//! the test goes on.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::netns::Netns;
use crate::process::Process;
use crate::scratch::Scratch;
use crate::skip::skip;
use crate::{sys, wait_until};

/// Set inside a guest to the name of its kernel.
const INSIDE: &str = "CULVERT_LAB";

/// Where a guest finds the files of its job.
const GUEST_FOLDER: &str = "/run/lab";

/// Variables of the outside that the inside gets too.
const PASSED_ON: [&str; 2] = ["RUST_BACKTRACE", "CULVERT_E2E"];

/// How long a guest may take beyond its job: to boot, and to switch itself off.
const BOOT_LIMIT: Duration = Duration::from_secs(90);

/// How long a guest may take to switch off.
const OFF_LIMIT: Duration = Duration::from_secs(10);

/// A kernel that the lab has, see `scripts/setup-lab`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// Linux 6.1 of Debian 12, older than what Culvert needs.
    Old,
    /// Linux 6.12, with all that Culvert needs and not all that it can use.
    Longterm,
    /// The newest that Debian's backports have.
    Recent,
}

impl Kernel {
    /// Its folder in the lab.
    fn name(self) -> &'static str {
        match self {
            Self::Old => "old",
            Self::Longterm => "longterm",
            Self::Recent => "recent",
        }
    }
}

/// Why a guest gave no result.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// Run `scripts/setup-lab`, which installs QEMU and fetches the kernels.
    #[error("the lab is not prepared, run scripts/setup-lab: {0}")]
    NotPrepared(String),
    /// The job or the kernel hangs; see the console and the output so far.
    #[error(
        "the guest did not end within {limit:?}\nconsole:\n{console}\noutput so far:\n{output}"
    )]
    TimedOut {
        /// Boot and job together.
        limit: Duration,
        /// The end of what the kernel wrote.
        console: String,
        /// What the job wrote.
        output: String,
    },
    /// The guest's kernel did not boot, or stopped with an oops; see the console.
    #[error("the guest ended without a result\nconsole:\n{console}\noutput so far:\n{output}")]
    Died {
        /// The end of what the kernel wrote.
        console: String,
        /// What the job wrote.
        output: String,
    },
}

/// What a job did.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What it wrote to standard output and standard error.
    pub output: String,
    /// Its exit code; 128 and the signal's number if one killed it.
    pub code: i32,
}

/// A guest to be booted.
#[derive(Clone, Debug)]
pub struct Guest {
    kernel: Kernel,
    modules: Vec<String>,
    devices: Vec<String>,
    files: Vec<(String, Vec<u8>)>,
    memory_mib: u32,
    limit: Duration,
    netns: Option<String>,
}

impl Guest {
    /// A guest of two processors and 1 GiB with `kernel`, without network cards; its job may take two minutes.
    pub fn new(kernel: Kernel) -> Self {
        Self {
            kernel,
            modules: Vec::new(),
            devices: Vec::new(),
            files: Vec::new(),
            memory_mib: 1024,
            limit: Duration::from_secs(120),
            netns: None,
        }
    }

    /// Runs QEMU in a network namespace, where it finds the devices that its options name.
    pub fn netns(mut self, ns: &Netns) -> Self {
        self.netns = Some(ns.name().to_owned());
        self
    }

    /// Loads these modules before the job runs. What the kernel asks for by itself is loaded anyway.
    pub fn modules(mut self, names: &[&str]) -> Self {
        self.modules.extend(names.iter().map(ToString::to_string));
        self
    }

    /// Adds devices by options of QEMU, split at white space.
    pub fn devices(mut self, options: &str) -> Self {
        self.devices.extend(options.split_whitespace().map(str::to_owned));
        self
    }

    /// Adds two network cards of a model, each in a PCI Express port of its own, joined by a wire.
    pub fn joined_cards(self, model: &str) -> Self {
        (0..2).fold(self, |guest, n| {
            guest.devices(&format!(
                "-device pcie-root-port,id=port{n},chassis={n} -netdev hubport,id=net{n},hubid=0 \
                 -device {model},bus=port{n},netdev=net{n},mac=02:cd:00:00:00:0{n}"
            ))
        })
    }

    /// Gives the job a file: it finds it as `/run/lab/NAME`.
    pub fn file(mut self, name: &str, bytes: impl Into<Vec<u8>>) -> Self {
        self.files.push((name.to_owned(), bytes.into()));
        self
    }

    /// Limits the time of the job, boot not counted.
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Boots, runs a shell script as root in `/`, and switches off.
    ///
    /// # Errors
    /// If the guest does not come up, dies, or does not end in time. A script that fails is no error.
    ///
    /// # Panics
    /// If files of the job cannot be written.
    pub fn run(&self, script: &str) -> Result<Outcome, LabError> {
        let prepared = prepared(self.kernel)?;
        let scratch = Scratch::new();
        let shared = scratch.file("job");
        let write = |name: &str, bytes: &[u8]| {
            let path = shared.join(name);
            fs::write(&path, bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        };
        fs::create_dir(&shared).unwrap_or_else(|e| panic!("{}: {e}", shared.display()));
        write("start", include_bytes!("../lab/start"));
        write("job", self.job(script).as_bytes());
        for (name, bytes) in &self.files {
            write(name, bytes);
        }
        let ns = self.netns.as_deref().map(Netns::open);
        let command = self.command(&prepared, &shared, ns.as_ref());
        let mut qemu = Process::spawn(&scratch, "qemu", command);
        let limit = BOOT_LIMIT + self.limit;
        let read = |name: &str| {
            let bytes = fs::read(shared.join(name)).unwrap_or_default();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        let code = || read("status").strip_suffix('\n').and_then(|code| code.parse().ok());
        let in_time = wait_until(limit, || code().is_some() || qemu.status().is_some());
        if code().is_some() {
            // A kernel that hangs when it is switched off has done the job all the same.
            qemu.wait(OFF_LIMIT);
        }
        qemu.kill();
        let output = read("output");
        match code() {
            Some(code) => Ok(Outcome { output, code }),
            None if in_time => Err(LabError::Died { console: qemu.log(), output }),
            None => Err(LabError::TimedOut { limit, console: qemu.log(), output }),
        }
    }

    fn job(&self, script: &str) -> String {
        let mut job = format!("export {INSIDE}={} CULVERT_CI=1\n", self.kernel.name());
        for name in PASSED_ON {
            if let Ok(value) = std::env::var(name) {
                // Writing to a String cannot fail.
                let _ = writeln!(job, "export {name}='{}'", value.replace('\'', r"'\''"));
            }
        }
        for module in &self.modules {
            let _ = writeln!(job, "modprobe {module} || exit");
        }
        job.push_str(script);
        job.push('\n');
        job
    }

    fn command(&self, prepared: &Path, shared: &Path, ns: Option<&Netns>) -> Command {
        let mut qemu = Command::new("qemu-system-x86_64");
        sys::prepare_child(&mut qemu, ns.map(Netns::fd));
        // Five levels of page tables cost emulation a memory access more each, and buy nothing here.
        qemu.args(["-machine", "q35", "-accel", "tcg", "-cpu", "max,la57=off", "-smp", "2"]);
        qemu.args(["-m", &self.memory_mib.to_string()]);
        qemu.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]);
        qemu.args(["-serial", "stdio"]);
        qemu.arg("-kernel").arg(prepared.join("vmlinuz"));
        qemu.arg("-initrd").arg(prepared.join("initramfs"));
        qemu.args(["-append", "console=ttyS0 quiet panic=-1 oops=panic mitigations=off"]);
        for (tag, folder, rights) in [
            ("host", Path::new("/"), "readonly=on,multidevs=remap"),
            ("modules", &prepared.join("lib/modules"), "readonly=on"),
            ("job", shared, "readonly=off"),
        ] {
            let folder = folder.display();
            qemu.arg("-virtfs");
            qemu.arg(format!("local,path={folder},mount_tag={tag},security_model=none,{rights}"));
        }
        qemu.args(&self.devices);
        qemu
    }
}

/// The folder of a kernel that `scripts/setup-lab` prepared.
fn prepared(kernel: Kernel) -> Result<PathBuf, LabError> {
    let own = std::env::current_exe().unwrap_or_default();
    let name = kernel.name();
    let folder = own.ancestors().map(|folder| folder.join("lab").join(name)).find(|f| f.is_dir());
    let folder = folder.ok_or_else(|| {
        LabError::NotPrepared(format!("no folder lab/{name} above {}", own.display()))
    })?;
    for file in ["vmlinuz", "initramfs", "lib/modules"] {
        if !folder.join(file).exists() {
            return Err(LabError::NotPrepared(format!("{} lacks {file}", folder.display())));
        }
    }
    if let Err(e) = Command::new("qemu-system-x86_64").arg("--version").output() {
        return Err(LabError::NotPrepared(format!("qemu-system-x86_64: {e}")));
    }
    Ok(folder)
}

/// Whether this process runs in a guest of the lab, where all is emulated: five to thirty times slower.
pub fn inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// Outside, runs the test called `test` of `module`, which is the caller's `module_path!()`, of this very program in
/// `guest` and returns false: the test is over. Inside returns true: the test goes on. Where there is no lab the test is
/// skipped.
///
/// # Panics
/// With all that the guest wrote, if the test fails there.
#[track_caller]
#[must_use]
pub fn enter(guest: &Guest, module: &str, test: &str) -> bool {
    if inside() {
        return true;
    }
    let program = std::env::current_exe().unwrap_or_else(|e| panic!("where is this program: {e}"));
    let program = program.display();
    // The harness names tests by their path inside the program.
    let test =
        module.split_once("::").map_or(test.to_owned(), |(_, path)| format!("{path}::{test}"));
    let result = guest.run(&format!("'{program}' --exact '{test}' --nocapture"));
    match result {
        Err(e @ LabError::NotPrepared(_)) => skip("lab", &e.to_string()),
        Err(e) => panic!("{e}"),
        // libtest says so too if no test has that name.
        Ok(Outcome { output, code: 0 }) if output.contains("test result: ok. 1 passed") => {
            eprintln!("{output}");
        }
        Ok(Outcome { output, code }) => panic!("in the guest, exit code {code}:\n{output}"),
    }
    false
}

/// The folder in which a job inside a guest finds the files that [`Guest::file`] gave it.
pub fn files() -> &'static Path {
    Path::new(GUEST_FOLDER)
}

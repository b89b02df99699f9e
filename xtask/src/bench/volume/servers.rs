//! The servers that are compared: each in a folder of its own, killed with the value.

use std::cell::RefCell;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::run::{Result, target_folder};

/// Longest time until a server answers.
pub(super) const STARTS_WITHIN: Duration = Duration::from_secs(120);

/// Which server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Gateway,
    Nbdkit,
    QemuNbd,
}

impl Kind {
    pub(super) const ALL: [Kind; 3] = [Kind::Gateway, Kind::Nbdkit, Kind::QemuNbd];

    pub(super) fn name(self) -> &'static str {
        match self {
            Kind::Gateway => "culvert-gateway",
            Kind::Nbdkit => "nbdkit file",
            Kind::QemuNbd => "qemu-nbd",
        }
    }
}

/// A server that runs.
pub(super) struct Server {
    kind: Kind,
    child: RefCell<Child>,
    socket: PathBuf,
    /// Where the gateway's metrics are.
    metrics: Option<SocketAddr>,
}

/// Where the gateway's program is.
pub(super) fn gateway_program() -> PathBuf {
    target_folder().join("release/culvert-gateway")
}

impl Server {
    /// Starts the server of `volume_bytes` in `folder`; the gateway with further arguments.
    pub(super) fn start(
        kind: Kind,
        folder: &Path,
        volume_bytes: u64,
        more: &[&str],
    ) -> Result<Server> {
        Server::start_with(kind, folder, volume_bytes, more, &[])
    }

    /// The same with variables in its environment.
    pub(super) fn start_with(
        kind: Kind,
        folder: &Path,
        volume_bytes: u64,
        more: &[&str],
        environment: &[(&str, String)],
    ) -> Result<Server> {
        std::fs::create_dir_all(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
        let socket = folder.join("socket");
        let _ = std::fs::remove_file(&socket);
        let at = |name: &str| folder.join(name).display().to_string();
        let metrics = if kind == Kind::Gateway { Some(free_port()?) } else { None };
        let mut command = match kind {
            Kind::Gateway => {
                let mut command = Command::new(gateway_program());
                command.args(["serve", "--cache", &at("cache"), "--listen", &at("socket")]);
                command.args(["--control", &at("control"), "--log", "warn"]);
                command
                    .args(metrics.iter().flat_map(|at| ["--metrics".to_owned(), at.to_string()]));
                if !more.contains(&"--store") {
                    command.args(["--store", &at("store")]);
                }
                command.args(["--volume", &format!("vol={volume_bytes}")]);
                command.args(more);
                command
            }
            Kind::Nbdkit => {
                let file = file_of(folder, volume_bytes)?;
                let mut command = Command::new("nbdkit");
                command.args(["--foreground", "--unix", &at("socket"), "file", &file]);
                command
            }
            Kind::QemuNbd => {
                let file = file_of(folder, volume_bytes)?;
                let mut command = Command::new("qemu-nbd");
                command.args(["--format", "raw", "--cache", "writeback", "--persistent"]);
                // More clients than any job has.
                command.args(["--shared", "64", "--socket", &at("socket"), &file]);
                command
            }
        };
        command.envs(environment.iter().map(|(name, value)| (name, value)));
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        let child = child.map_err(|e| format!("cannot start {}: {e}", kind.name()))?;
        let server = Server { kind, child: RefCell::new(child), socket, metrics };
        let begun = Instant::now();
        while UnixStream::connect(&server.socket).is_err() {
            server.check_running()?;
            if begun.elapsed() > STARTS_WITHIN {
                return Err(format!("{} does not listen", kind.name()));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(server)
    }

    pub(super) fn uri(&self) -> String {
        self.uri_of(if self.is_gateway() { "vol" } else { "" })
    }

    /// The address of another volume of it.
    pub(super) fn uri_of(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.socket.display())
    }

    /// Fails if it has ended: nobody need wait for its answers.
    pub(super) fn check_running(&self) -> Result {
        match self.child.borrow_mut().try_wait() {
            Ok(Some(status)) => Err(format!("{} ended with {status}", self.kind.name())),
            Ok(None) | Err(_) => Ok(()),
        }
    }

    pub(super) fn socket(&self) -> &Path {
        &self.socket
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.borrow().id()
    }

    /// Whether it is the gateway, which tells metrics.
    pub(super) fn is_gateway(&self) -> bool {
        self.kind == Kind::Gateway
    }

    /// The sum of a metric of the gateway over all labels.
    pub(super) fn metric(&self, name: &str) -> Result<f64> {
        self.metric_where(name, "")
    }

    /// The sum of a metric of the gateway over the labels that have `label` in them, as `name="value"`.
    pub(super) fn metric_where(&self, name: &str, label: &str) -> Result<f64> {
        let address = self.metrics.ok_or("this server has no metrics")?;
        let failed = |e: std::io::Error| format!("metrics: {e}");
        // A server that has just started may serve before it tells.
        let begun = Instant::now();
        let mut stream = loop {
            match TcpStream::connect(address) {
                Ok(stream) => break stream,
                Err(e) if begun.elapsed() > STARTS_WITHIN => return Err(failed(e)),
                Err(_) => {
                    self.check_running()?;
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
        };
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").map_err(failed)?;
        let mut text = String::new();
        stream.read_to_string(&mut text).map_err(failed)?;
        sum_of(&text, name, label)
            .ok_or_else(|| format!("the gateway does not tell {name} with {label:?}"))
    }

    /// Waits until everything is in the store.
    pub(super) fn wait_until_clean(&self) -> Result {
        let begun = Instant::now();
        while self.metric("culvert_volume_dirty_bytes")? > 0.0 {
            if begun.elapsed() > STARTS_WITHIN {
                return Err("the volume does not become clean".to_owned());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Kills it.
    pub(super) fn kill(mut self) -> Result {
        let child = self.child.get_mut();
        child.kill().map_err(|e| e.to_string())?;
        child.wait().map_err(|e| e.to_string())?;
        Ok(())
    }

    /// Seconds of CPU time that it has used.
    pub(super) fn cpu_secs(&self) -> Result<f64> {
        let path = format!("/proc/{}/stat", self.pid());
        let stat = std::fs::read_to_string(&path).map_err(|e| format!("{path}: {e}"))?;
        // Fields 14 and 15, counted from behind the name, which may hold blanks.
        let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
        let ticks: f64 =
            fields.skip(11).take(2).filter_map(|field| field.parse::<f64>().ok()).sum();
        Ok(ticks / 100.0)
    }

    /// Tells it to end, and waits for that.
    pub(super) fn stop(mut self) -> Result {
        let pid = self.pid().to_string();
        crate::run::command("kill").args(["-TERM", &pid]).status().map_err(|e| e.to_string())?;
        self.child.get_mut().wait().map_err(|e| e.to_string())?;
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let child = self.child.get_mut();
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// The sum of a metric over those of its labels that have `label` in them. `None` if there is none.
fn sum_of(metrics: &str, name: &str, label: &str) -> Option<f64> {
    let values = metrics.lines().filter_map(|line| {
        let (left, value) = line.rsplit_once(' ')?;
        let is_it = left.split('{').next() == Some(name) && left.contains(label);
        is_it.then(|| value.parse::<f64>().ok()).flatten()
    });
    values.reduce(|sum, value| sum + value)
}

/// An address of this host that nobody listened on a moment ago.
fn free_port() -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").map_err(|e| format!("127.0.0.1: {e}"))?;
    listener.local_addr().map_err(|e| format!("127.0.0.1: {e}"))
}

/// The file that a server of files serves.
fn file_of(folder: &Path, bytes: u64) -> Result<String> {
    let path = folder.join("image");
    if !path.exists() {
        let file = File::create(&path).and_then(|file| file.set_len(bytes));
        file.map_err(|e| format!("{}: {e}", path.display()))?;
    }
    Ok(path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_has_ended_is_not_waited_for() {
        let child = RefCell::new(Command::new("true").spawn().unwrap());
        let (kind, metrics) = (Kind::Gateway, Some(free_port().unwrap()));
        let server = Server { kind, child, socket: PathBuf::new(), metrics };
        let begun = Instant::now();
        let told = server.metric("a_total").unwrap_err();
        assert!(told.contains("culvert-gateway ended with"), "{told}");
        assert!(begun.elapsed() < STARTS_WITHIN / 2);
    }

    #[test]
    fn a_metric_is_summed_over_its_labels_and_one_that_is_not_told_is_no_zero() {
        let text = "# HELP a_total Of something.\n# TYPE a_total counter\na_total 0\n\
                    b_count{command=\"read\"} 3\nb_count{command=\"flush\"} 4\n";
        assert_eq!(sum_of(text, "a_total", ""), Some(0.0));
        assert_eq!(sum_of(text, "b_count", ""), Some(7.0));
        assert_eq!(sum_of(text, "b_count", "command=\"flush\""), Some(4.0));
        assert_eq!(sum_of(text, "b", ""), None);
        assert_eq!(sum_of(text, "b_count", "command=\"trim\""), None);
    }
}

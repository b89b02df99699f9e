//! One `culvertd`, a client of it, and an etcd that several share.

use std::fs;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use culvert_model::api::control_client::ControlClient;
use culvert_model::limits::MESSAGE_BYTES_MAX;
use culvert_model::{Edit, Host, api, host_toml};
use tonic::transport::Channel;
use tonic::{Response, Status};

use crate::culvert::binary;
use crate::netns::Netns;
use crate::process::{CommandError, Process, run_command};
use crate::scratch::Scratch;
use crate::wait_until;

/// A culvertd of one host: its folder and, while it runs, its process.
#[derive(Debug)]
pub struct Culvertd {
    process: Option<Process>,
    folder: PathBuf,
    name: String,
    args: Vec<String>,
}

impl Culvertd {
    /// Prepares the culvertd of the host `name`, for the dataplane that serves `dataplane`.
    ///
    /// # Panics
    /// If its folder cannot be made.
    pub fn new(scratch: &Scratch, name: &str, dataplane: &Path, args: &[&str]) -> Self {
        let folder = scratch.file(&format!("culvertd-{name}"));
        fs::create_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
        let mut args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        args.extend(["--dataplane".to_owned(), dataplane.display().to_string()]);
        Self { process: None, folder, name: name.to_owned(), args }
    }

    /// Starts the process in `ns` and waits until its socket answers.
    ///
    /// # Panics
    /// With its log, if it does not answer within 20 seconds.
    pub fn start(&mut self, ns: &Netns, scratch: &Scratch) {
        let socket = self.socket();
        let mut command = ns.command(binary("culvertd"));
        command.env("NO_COLOR", "1").args(["--host", &self.name]);
        command.arg("--socket").arg(&socket).arg("--state-dir").arg(self.folder.join("state"));
        command.args(&self.args);
        let mut process = Process::spawn(scratch, "culvertd", command);
        let ready = || process.status().is_some() || process.log().contains("ready");
        wait_until(Duration::from_secs(20), ready);
        assert!(
            process.status().is_none() && StdUnixStream::connect(&socket).is_ok(),
            "culvertd does not answer on {}; its log:\n{}",
            socket.display(),
            process.log()
        );
        self.process = Some(process);
    }

    /// The path of its socket.
    pub fn socket(&self) -> PathBuf {
        self.folder.join("culvertd.sock")
    }

    /// The running process.
    ///
    /// # Panics
    /// If it was not started.
    #[track_caller]
    pub fn process(&mut self) -> &mut Process {
        match &mut self.process {
            Some(process) => process,
            None => panic!("culvertd was not started"),
        }
    }

    /// A client of its own.
    ///
    /// # Panics
    /// If culvertd does not answer.
    #[track_caller]
    pub fn client(&self) -> Control {
        Control::connect(&self.socket())
    }

    /// Runs the CLI with `args` against it.
    ///
    /// # Errors
    /// The CLI's exit code and message.
    pub fn cli(&self, ns: &Netns, args: &[&str]) -> Result<String, CommandError> {
        let mut command = ns.command(binary("culvert"));
        command.arg("--run-dir").arg(&self.folder).args(args);
        run_command(&mut command)
    }
}

/// A client of a culvertd, for code that is not asynchronous.
#[derive(Debug)]
pub struct Control {
    runtime: tokio::runtime::Runtime,
    client: ControlClient<Channel>,
}

impl Control {
    /// Connects to a socket.
    ///
    /// # Panics
    /// If nobody answers there.
    #[track_caller]
    pub fn connect(socket: &Path) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.unwrap_or_else(|e| panic!("no runtime: {e}"));
        let channel = runtime.block_on(culvert_socket::connect(socket));
        let channel = channel.unwrap_or_else(|e| panic!("{}: {e}", socket.display()));
        let client = ControlClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        Self { runtime, client }
    }

    /// Makes a `host.toml` what is wanted, and waits until it is carried.
    ///
    /// # Errors
    /// As culvertd refuses it.
    ///
    /// # Panics
    /// If the text is no `host.toml`.
    #[track_caller]
    pub fn apply(&mut self, toml: &str) -> Result<api::Committed, Status> {
        let host: Host = host_toml::read(toml).unwrap_or_else(|e| panic!("{e:?}:\n{toml}"));
        self.apply_host(&host, 20_000)
    }

    /// Makes a state what is wanted, and waits until it is carried.
    ///
    /// # Errors
    /// As culvertd refuses it.
    pub fn apply_host(&mut self, host: &Host, wait_ms: u32) -> Result<api::Committed, Status> {
        let state = Some(host.into());
        let request = api::ApplyStateRequest { state, wait_ms, ..Default::default() };
        self.runtime.block_on(self.client.apply_state(request)).map(Response::into_inner)
    }

    /// Makes edits, and waits until they are carried.
    ///
    /// # Errors
    /// As culvertd refuses them.
    pub fn edit(&mut self, edits: &[Edit], wait_ms: u32) -> Result<api::Committed, Status> {
        let edits = edits.iter().map(Into::into).collect();
        let request = api::ApplyEditsRequest { edits, wait_ms, ..Default::default() };
        self.runtime.block_on(self.client.apply_edits(request)).map(Response::into_inner)
    }

    /// How store and dataplane are.
    ///
    /// # Panics
    /// If culvertd does not answer.
    #[track_caller]
    pub fn info(&mut self) -> api::ControlInfo {
        let info = self.client.get_control_info(api::GetControlInfoRequest {});
        let info = self.runtime.block_on(info);
        info.unwrap_or_else(|e| panic!("culvertd does not answer: {e}")).into_inner()
    }

    /// Addresses that the dataplane has mappings for.
    ///
    /// # Panics
    /// If culvertd does not answer.
    #[track_caller]
    pub fn mappings(&mut self) -> Vec<IpAddr> {
        let request = api::ListObjectsRequest {
            kind: api::ObjectKind::Mapping.into(),
            derived: true,
            ..Default::default()
        };
        let list = self.runtime.block_on(self.client.list_objects(request));
        let list = list.unwrap_or_else(|e| panic!("culvertd does not answer: {e}")).into_inner();
        let applied = list.objects.into_iter();
        applied
            .filter(|object| object.status() == api::ApplyStatus::Applied)
            .filter_map(|object| match object.object?.object? {
                api::object::Object::Mapping(mapping) => mapping.ip.parse().ok(),
                _ => None,
            })
            .collect()
    }

    /// Calls `seen` with each change of status from now on, until it returns false.
    ///
    /// # Panics
    /// If culvertd ends.
    pub fn watch(&mut self, subscribed: impl FnOnce(), mut seen: impl FnMut(api::Event) -> bool) {
        self.runtime.block_on(async {
            let events = self.client.watch_events(api::WatchEventsRequest {}).await;
            let mut events = events.unwrap_or_else(|e| panic!("no events: {e}")).into_inner();
            subscribed();
            loop {
                match events.message().await {
                    Ok(Some(event)) => {
                        if !seen(event) {
                            return;
                        }
                    }
                    ended => panic!("events ended: {ended:?}"),
                }
            }
        });
    }
}

/// An etcd of one member, on an address of a namespace.
#[derive(Debug)]
pub struct Etcd {
    process: Option<Process>,
    address: IpAddr,
    data: PathBuf,
    /// With TLS: the folder of its certificates.
    certificates: Option<PathBuf>,
}

impl Etcd {
    /// Prepares one that will listen on `address`.
    pub fn new(scratch: &Scratch, address: IpAddr) -> Self {
        Self { process: None, address, data: scratch.file("etcd"), certificates: None }
    }

    /// One that speaks TLS, and takes only clients with a certificate of the authority `ca` in a folder that
    /// [`certificates`](crate::certificates) filled; its own is `server`.
    pub fn with_tls(scratch: &Scratch, address: IpAddr, folder: &Path) -> Self {
        Self { certificates: Some(folder.to_owned()), ..Self::new(scratch, address) }
    }

    /// Where clients find it.
    pub fn url(&self) -> String {
        let scheme = if self.certificates.is_some() { "https" } else { "http" };
        format!("{scheme}://{}:2379", self.address)
    }

    /// Starts it in `ns`.
    ///
    /// # Panics
    /// With its log, if it does not start.
    pub fn start(&mut self, ns: &Netns, scratch: &Scratch) {
        let (url, peer) = (self.url(), format!("http://{}:2380", self.address));
        let mut command = ns.command("etcd");
        command.arg("--data-dir").arg(&self.data);
        command.args(["--listen-client-urls", &url, "--advertise-client-urls", &url]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--initial-cluster", &format!("default={peer}")]);
        command.args(["--max-txn-ops", "10000", "--logger", "zap"]);
        if let Some(folder) = &self.certificates {
            let file = |name: &str| folder.join(name);
            command.arg("--cert-file").arg(file("server.pem"));
            command.arg("--key-file").arg(file("server.key"));
            command.arg("--trusted-ca-file").arg(file("ca.pem")).arg("--client-cert-auth");
        }
        let mut process = Process::spawn(scratch, "etcd", command);
        let address = SocketAddr::new(self.address, 2379);
        let answers = || ns.enter(|| TcpStream::connect(address)).is_ok();
        let up = wait_until(Duration::from_secs(20), || process.status().is_some() || answers());
        assert!(up && process.status().is_none(), "etcd does not answer:\n{}", process.log());
        self.process = Some(process);
    }

    /// Kills it; its data stay.
    pub fn kill(&mut self) {
        if let Some(process) = &mut self.process {
            process.kill();
        }
    }
}

//! Who is let in.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use culvert_model::api;
use culvert_model::api::control_client::ControlClient;
use tonic::Code;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use crate::support::{Scratch, TestHost, connect};

/// The socket that a child of this test program is to call.
const CALL: &str = "CULVERTD_TEST_CALL";

#[tokio::test(flavor = "multi_thread")]
async fn this_user_may_call() {
    // As a child, it is another user that calls the parent's culvertd, and tells what came of it.
    if let Some(socket) = std::env::var_os(CALL) {
        let mut client = connect(Path::new(&socket)).await;
        match client.get_control_info(api::GetControlInfoRequest {}).await {
            Ok(_) => println!("let in"),
            Err(status) => println!("{:?}: {}", status.code(), status.message()),
        }
        return;
    }
    let host = TestHost::new("a");
    let mut daemon = host.start().await;
    assert_eq!(daemon.info().await.refused_callers, 0);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_user_is_refused_and_counted() {
    const NOBODY: u32 = 65534;
    let host = TestHost::new("a");
    let mut daemon = host.start().await;
    // Where others can read it.
    let program = host.scratch.path("caller");
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let mut command = Command::new(program);
    command.args(["--exact", "access::this_user_may_call", "--nocapture"]);
    command.env(CALL, host.socket()).uid(NOBODY).gid(NOBODY).current_dir("/");
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("PermissionDenied: user 65534 may not use culvertd"), "{output:?}");
    assert_eq!(daemon.info().await.refused_callers, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_that_does_not_exist_is_named() {
    let host = TestHost::new("a");
    let open = Box::new(|_: &_| unreachable!("before anything is opened"));
    let error = host.start_with("group = \"no-such-group\"", open).await.err().unwrap();
    assert!(error.to_string().contains("\"no-such-group\": no such group"), "{error}");
}

/// Certificates of one authority: for the server `localhost`, and a client.
fn certificates(scratch: &Scratch) {
    let script = r#"
        set -e
        ca() { openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj "/CN=$1" \
            -keyout $1.key -out $1.pem -addext basicConstraints=critical,CA:TRUE; }
        leaf() { openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=$1" -keyout $1.key -out $1.csr
            printf 'subjectAltName=DNS:localhost\n' >$1.ext
            openssl x509 -req -in $1.csr -CA $2.pem -CAkey $2.key -CAcreateserial -days 2 -extfile $1.ext -out $1.pem; }
        ca ca; ca stranger-ca; leaf server ca; leaf client ca; leaf stranger stranger-ca
    "#;
    let mut command = Command::new("bash");
    let output = command.args(["-c", script]).current_dir(scratch.path("")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

async fn call(
    scratch: &Scratch,
    port: u16,
    client: Option<&str>,
) -> Result<api::ControlInfo, String> {
    let read = |name: &str| std::fs::read(scratch.path(name)).unwrap();
    let mut tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(read("ca.pem")))
        .domain_name("localhost");
    if let Some(name) = client {
        let (certificate, key) = (read(&format!("{name}.pem")), read(&format!("{name}.key")));
        tls = tls.identity(Identity::from_pem(certificate, key));
    }
    let endpoint = Endpoint::from_shared(format!("https://127.0.0.1:{port}")).unwrap();
    let endpoint = endpoint.tls_config(tls).unwrap().timeout(Duration::from_secs(5));
    let channel: Channel = endpoint.connect().await.map_err(|error| format!("{error:?}"))?;
    let info = ControlClient::new(channel).get_control_info(api::GetControlInfoRequest {}).await;
    info.map(tonic::Response::into_inner).map_err(|status| format!("{status:?}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn over_tcp_only_clients_with_a_certificate_of_the_authority_are_let_in() {
    let host = TestHost::new("a");
    certificates(&host.scratch);
    let port = {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        free.local_addr().unwrap().port()
    };
    let file = |name: &str| host.scratch.path(name).display().to_string();
    let toml = format!(
        "[tcp]\nlisten = \"127.0.0.1:{port}\"\ncertificate = {:?}\nkey = {:?}\nclient_ca = {:?}\n",
        file("server.pem"),
        file("server.key"),
        file("ca.pem")
    );
    let path = host.scratch.path("state.redb");
    let open = Box::new(move |_: &_| {
        let store = culvert_daemon::store::file::FileStore::open(&path)?;
        Ok(std::sync::Arc::new(store) as _)
    });
    let _daemon = host.start_with(&toml, open).await.unwrap();
    assert_eq!(call(&host.scratch, port, Some("client")).await.unwrap().host, "a");
    for stranger in [None, Some("stranger")] {
        let answer = call(&host.scratch, port, stranger).await;
        assert!(answer.is_err(), "{stranger:?} was let in");
    }
    assert!(call(&host.scratch, port, Some("client")).await.is_ok());
    // In the clear there is no answer at all.
    let plain = Endpoint::from_shared(format!("http://127.0.0.1:{port}")).unwrap();
    let answer = match plain.connect().await {
        Ok(channel) => {
            let info = api::GetControlInfoRequest {};
            ControlClient::new(channel).get_control_info(info).await.map(drop).map_err(|s| s.code())
        }
        Err(_) => Err(Code::Unavailable),
    };
    assert!(answer.is_err());
}

//! Stock clients against the server, and stock servers against the client.

use std::path::Path;
use std::time::Duration;

use culvert_nbd::Limits;
use culvert_nbd::client::Client;
use culvert_nbd::export::ZeroMode;
use culvert_nbd::handshake::client::Wish;
use culvert_nbd::proto::Style;
use tokio::net::UnixStream;
use tokio::process::{Child, Command};

use crate::skip::skip;
use crate::support::{
    Gated, MIB, Scratch, eventually, example, nbdsh, pattern, run, run_any, serve,
};

fn device() -> Gated {
    Gated::new(16 * MIB, false)
}

/// Whether qemu is at least version 8.2, the first one with extended headers.
async fn qemu_has_extended_headers() -> bool {
    let text = run("qemu-img", &["--version"]).await;
    let version = text.split_whitespace().nth(2).unwrap_or_default();
    let mut numbers = version.split('.').map(|n| n.parse::<u32>().unwrap_or(0));
    (numbers.next(), numbers.next()) >= (Some(8), Some(2))
}

#[tokio::test(flavor = "multi_thread")]
async fn nbdinfo_sees_what_the_export_says() {
    let served = serve(device(), Limits::default());
    for uri in [served.unix_uri("vol"), served.tcp_uri("vol")] {
        let out = run("nbdinfo", &["--json", &uri]).await;
        for expected in [
            "\"protocol\": \"newstyle-fixed\"",
            "\"structured\": true",
            "\"export-name\": \"vol\"",
            "\"description\": \"in memory\"",
            "\"export-size\": 16777216",
            "\"base:allocation\"",
            "\"culvert:cache\"",
            "\"is_read_only\": false",
            "\"can_cache\": true",
            "\"can_df\": true",
            "\"can_fast_zero\": true",
            "\"can_flush\": true",
            "\"can_fua\": true",
            "\"can_multi_conn\": true",
            "\"can_trim\": true",
            "\"can_zero\": true",
            "\"block_size_minimum\": 1",
            "\"block_size_preferred\": 4096",
            "\"block_size_maximum\": 33554432",
        ] {
            assert!(out.contains(expected), "{expected} is not in\n{out}");
        }
    }
    let out = run("nbdinfo", &["--json", &served.unix_uri("ro")]).await;
    assert!(out.contains("\"is_read_only\": true") && out.contains("\"can_trim\": false"), "{out}");
    let out = run("nbdinfo", &["--list", &served.unix_uri("")]).await;
    assert!(out.contains("export=\"vol\""), "{out}");
    let (ok, _, err) = run_any("nbdinfo", &[&served.unix_uri("nothing")]).await;
    assert!(!ok && err.contains("No such file or directory"), "{err}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nbdinfo_maps_holes_and_the_cache() {
    let served = serve(device(), Limits::default());
    let client = served.client("vol").await.unwrap();
    client.write(MIB, &vec![1; MIB as usize], true).await.unwrap();
    client.write(4 * MIB, &vec![1; MIB as usize], false).await.unwrap();
    let lines = |out: String| -> Vec<Vec<String>> {
        out.lines().map(|l| l.split_whitespace().take(3).map(str::to_owned).collect()).collect()
    };
    let out = lines(run("nbdinfo", &["--map", &served.unix_uri("vol")]).await);
    let expected = [
        ["0", "1048576", "3"],
        ["1048576", "1048576", "0"],
        ["2097152", "2097152", "3"],
        ["4194304", "1048576", "0"],
        ["5242880", "11534336", "3"],
    ];
    assert_eq!(out, expected);
    let out = lines(run("nbdinfo", &["--map=culvert:cache", &served.tcp_uri("vol")]).await);
    let expected = [
        ["0", "1048576", "0"],
        ["1048576", "1048576", "1"],
        ["2097152", "2097152", "0"],
        ["4194304", "1048576", "3"],
        ["5242880", "11534336", "0"],
    ];
    assert_eq!(out, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn nbdcopy_brings_an_image_in_and_out_unchanged() {
    let served = serve(device(), Limits::default());
    let (image, copy) = (served.scratch.path("image"), served.scratch.path("copy"));
    let mut data = pattern(0, 16 * MIB as usize);
    data[3 * MIB as usize..9 * MIB as usize].fill(0);
    std::fs::write(&image, &data).unwrap();
    for uri in [served.unix_uri("vol"), served.tcp_uri("vol")] {
        let many = &["--connections=4", "--requests=16"];
        run("nbdcopy", &[many[0], many[1], "--flush", image.to_str().unwrap(), &uri]).await;
        run("nbdcopy", &[many[0], many[1], &uri, copy.to_str().unwrap()]).await;
        run("cmp", &[image.to_str().unwrap(), copy.to_str().unwrap()]).await;
        assert!(served.export.memory.flushes() > 0);
        assert!(served.export.memory.allocated_bytes() <= 10 * MIB, "zeroes became no hole");
        std::fs::remove_file(&copy).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn qemu_img_converts_compares_and_maps() {
    for is_unix in [true, false] {
        let served = serve(device(), Limits::default());
        let uri = if is_unix { served.unix_uri("vol") } else { served.tcp_uri("vol") };
        let (image, copy) = (served.scratch.path("image"), served.scratch.path("copy"));
        let (image, copy) = (image.to_str().unwrap(), copy.to_str().unwrap());
        let mut data = pattern(0, 16 * MIB as usize);
        data[2 * MIB as usize..12 * MIB as usize].fill(0);
        std::fs::write(image, &data).unwrap();
        let convert = ["convert", "-n", "--target-is-zero", "-f", "raw", "-O", "raw", image, &uri];
        run("qemu-img", &convert).await;
        run("qemu-img", &["compare", "-f", "raw", "-F", "raw", image, &uri]).await;
        run("qemu-img", &["convert", "-f", "raw", "-O", "raw", &uri, copy]).await;
        run("cmp", &[image, copy]).await;
        let map = run("qemu-img", &["map", "-f", "raw", "--output=json", &uri]).await;
        let hole = "\"start\": 2097152, \"length\": 10485760, \"depth\": 0, \"present\": true, \
                    \"zero\": true";
        assert!(map.contains(hole), "{map}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn qemu_io_writes_zeroes_and_discards_as_it_was_told() {
    let served = serve(device(), Limits::default());
    for uri in [served.unix_uri("vol"), served.tcp_uri("vol")] {
        let commands = [
            "write -P 0x11 0 1M",
            "write -f -P 0x22 64k 4k",
            "write -P 0x33 4097 3",
            "write -z 128k 64k",
            "write -z -u 256k 64k",
            "write -z -n -u 320k 64k",
            "discard 512k 128k",
            "flush",
            "read -P 0x11 0 4097",
            "read -P 0x33 4097 3",
            "read -P 0x11 4100 61436",
            "read -P 0x22 64k 4k",
            "read -P 0 128k 64k",
            "read -P 0 256k 128k",
            "read -P 0 512k 128k",
            "read -P 0x11 640k 384k",
        ];
        let mut args = vec!["-d", "unmap", "-f", "raw"];
        args.extend(commands.iter().flat_map(|command| ["-c", command]));
        args.push(&uri);
        let out = run("qemu-io", &args).await;
        assert!(!out.contains("failed") && !out.contains("error"), "{out}");
        assert_eq!(out.matches("read ").count(), 8, "{out}");
        // Without unmap permission, zeroes keep their space; with it, and discarded, they do not.
        assert_eq!(served.export.memory.allocated_bytes(), MIB - (256 << 10));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn qemu_speaks_extended_headers_with_the_server() {
    if !qemu_has_extended_headers().await {
        skip("qemu-extended-headers", "qemu-utils is older than 8.2");
        return;
    }
    let served = serve(device(), Limits::default());
    let uri = served.unix_uri("vol");
    let mut qemu = Command::new("qemu-io")
        .args(["-d", "unmap", "-f", "raw"])
        .args(["-c", "write -P 7 0 1M", "-c", "write -z -u 0 16M", "-c", "sleep 60000"])
        .arg(&uri)
        .stdin(std::process::Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let zeroes = culvert_nbd::proto::request::Command::WriteZeroes;
    let latency = &served.statistics.command(zeroes).unwrap().latency;
    eventually(|| latency.counts().iter().sum::<u64>() > 0).await;
    let connections = served.server.connections().all();
    assert_eq!(connections[0].style(), Some(Style::Extended));
    assert_eq!(served.export.memory.allocated_bytes(), 0);
    qemu.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn fio_verifies_what_it_wrote_from_several_jobs() {
    let served = serve(device(), Limits::default());
    let uri = format!("--uri={}", served.unix_uri("vol"));
    let out = run(
        "fio",
        &[
            "--name=verify",
            "--ioengine=nbd",
            &uri,
            "--rw=randwrite",
            "--bs=4k",
            "--iodepth=16",
            "--size=4m",
            "--offset_increment=4m",
            "--numjobs=4",
            "--verify=crc32c",
            "--fsync=64",
            "--verify_state_save=0",
            "--group_reporting",
        ],
    )
    .await;
    assert!(out.contains("err= 0"), "{out}");
    assert!(served.export.memory.flushes() > 0);
    assert_eq!(served.export.memory.allocated_bytes(), 16 * MIB);
}

#[tokio::test(flavor = "multi_thread")]
async fn libnbd_starts_the_server_on_standard_streams_and_by_socket_activation() {
    let program = example();
    for start in ["connect_command", "connect_systemd_socket_activation"] {
        let arguments =
            if start == "connect_command" { "'1048576', '--stdio'" } else { "'1048576'" };
        let script = format!(
            "h.set_export_name('vol')\n\
             h.{start}(['{}', {arguments}])\n\
             assert h.get_size() == 1048576\n\
             h.pwrite(b'x' * 5000, 100)\n\
             assert h.pread(5000, 100) == b'x' * 5000\n\
             h.shutdown()",
            program.display()
        );
        nbdsh(&script).await;
    }
}

/// A stock server, ended with the value.
struct Stock {
    _child: Child,
    socket: std::path::PathBuf,
    _scratch: Scratch,
}

async fn stock(program: &str, args: impl Fn(&Path, &Path) -> Vec<String>) -> Stock {
    let scratch = Scratch::new();
    let (socket, image) = (scratch.path("sock"), scratch.path("image"));
    std::fs::File::create(&image).unwrap().set_len(4 * MIB).unwrap();
    let child = Command::new(program)
        .args(args(&socket, &image))
        .stdin(std::process::Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap_or_else(|e| panic!("{program}: {e}; scripts/setup installs it"));
    eventually(|| std::os::unix::net::UnixStream::connect(&socket).is_ok()).await;
    Stock { _child: child, socket, _scratch: scratch }
}

impl Stock {
    async fn client(&self, style: Style) -> Client {
        let contexts = vec!["base:allocation".to_owned()];
        let wish = Wish { style, contexts, ..Wish::to_use("vol") };
        let stream = UnixStream::connect(&self.socket).await.unwrap();
        Client::connect(stream, wish).await.unwrap()
    }
}

async fn exercise(client: &Client) {
    assert_eq!(client.agreed().size, 4 * MIB);
    let data = pattern(512, 200_000);
    client.write(512, &data, false).await.unwrap();
    client.flush().await.unwrap();
    assert_eq!(client.read(512, 200_000).await.unwrap(), data);
    client.write_zeroes(0, MIB, ZeroMode::default()).await.unwrap();
    client.trim(2 * MIB, MIB, false).await.unwrap();
    assert!(client.read(0, 2 << 20).await.unwrap().iter().all(|b| *b == 0));
    assert!(client.read(4 * MIB, 512).await.is_err());
    if client.agreed().style > Style::Simple {
        let statuses = client.block_status(0, 4 * MIB, false).await.unwrap();
        assert_eq!(statuses.len(), 1);
        assert_eq!(statuses[0].0, client.agreed().contexts[0].0);
        assert!(statuses[0].1.iter().map(|e| e.length).sum::<u64>() > 0);
    }
    let reads = (0..64).map(|i| {
        let client = client.clone();
        tokio::spawn(async move { client.read(i * 4096, 4096).await.unwrap() })
    });
    for read in reads.collect::<Vec<_>>() {
        tokio::time::timeout(Duration::from_secs(30), read).await.unwrap().unwrap();
    }
    client.disconnect().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_uses_qemu_nbd() {
    let server = stock("qemu-nbd", |socket, image| {
        let (socket, image) = (socket.display().to_string(), image.display().to_string());
        ["-t", "-x", "vol", "-f", "raw", "--discard=unmap", "-e", "8", "-k", &socket, &image]
            .map(str::to_owned)
            .to_vec()
    })
    .await;
    let mut styles = vec![Style::Simple, Style::Structured];
    if qemu_has_extended_headers().await {
        styles.push(Style::Extended);
    } else {
        skip("qemu-extended-headers", "qemu-utils is older than 8.2");
    }
    for style in styles {
        let client = server.client(style).await;
        assert_eq!(client.agreed().style, style);
        exercise(&client).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_uses_nbdkit_in_what_framing_it_has() {
    for (flag, expected) in [("--threads=4", Style::Structured), ("--no-sr", Style::Simple)] {
        let server = stock("nbdkit", |socket, _| {
            ["-f", flag, "-U", &socket.display().to_string(), "memory", "4M"]
                .map(str::to_owned)
                .to_vec()
        })
        .await;
        // This version has no extended headers: the client takes the next best.
        let client = server.client(Style::Extended).await;
        assert_eq!(client.agreed().style, expected);
        exercise(&client).await;
    }
}

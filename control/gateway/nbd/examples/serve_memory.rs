//! Serves one export in memory, called `vol` and also the default one:
//! `serve_memory SIZE (--stdio | --tcp ADDRESS | --unix PATH)`, or on the sockets that a service
//! manager passes. SIGINT shuts it down.

use culvert_nbd::export::{OpenRequest, Opened, Refusal};
use culvert_nbd::memory::{Memory, MemoryExports};
use culvert_nbd::{Exports, Limits, Listener, Server, Shutdown, Stream};

/// The empty name stands for `vol`.
struct WithDefault(MemoryExports);

impl Exports for WithDefault {
    type Export = Memory;

    async fn list(&self) -> Result<Vec<culvert_nbd::export::Listed>, Refusal> {
        self.0.list().await
    }

    async fn open(&self, request: OpenRequest<'_>) -> Result<Opened<Memory>, Refusal> {
        let name = if request.name.is_empty() { "vol" } else { request.name };
        self.0.open(OpenRequest { name, ..request }).await
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let (size, place) = args.split_first().ok_or("no size")?;
    let exports = MemoryExports::default();
    exports.insert("vol", Memory::new(size.parse()?));
    let server = Server::new(WithDefault(exports), Limits::default(), ());
    let listeners = match place {
        ["--stdio"] => {
            server.serve_stream(Stream::stdio()?).await;
            return Ok(());
        }
        ["--tcp", address] => vec![Listener::tcp(address.parse()?)?],
        ["--unix", path] => vec![Listener::unix(path.as_ref())?],
        [] => Listener::from_activation()?,
        _ => return Err("serve_memory SIZE [--stdio | --tcp ADDRESS | --unix PATH]".into()),
    };
    if listeners.is_empty() {
        return Err("no socket to listen on".into());
    }
    for listener in listeners {
        println!("{listener}");
        let server = server.clone();
        tokio::spawn(async move { server.serve(listener).await });
    }
    tokio::signal::ctrl_c().await?;
    server.shutdown(Shutdown::default()).await;
    Ok(())
}

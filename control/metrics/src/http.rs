//! Just enough of HTTP.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tracing::debug;

/// Longest request that is read, in bytes, and longest time that it and its answer may take.
const REQUEST_BYTES_MAX: usize = 8 << 10;
const PATIENCE: Duration = Duration::from_secs(5);
/// Clients at a time; others wait in the kernel.
const CLIENTS_MAX: usize = 16;

/// Answers every request at `address` with what `render` makes of it then, until the runtime ends.
///
/// # Errors
/// When the address cannot be listened on.
pub async fn listen<F, R>(address: SocketAddr, render: F) -> io::Result<SocketAddr>
where
    F: Fn() -> R + Send + Sync + 'static,
    R: Future<Output = String> + Send,
{
    let listener = TcpListener::bind(address).await?;
    let bound = listener.local_addr()?;
    let render = Arc::new(render);
    let room = Arc::new(Semaphore::new(CLIENTS_MAX));
    tokio::spawn(async move {
        while let Ok(permit) = Arc::clone(&room).acquire_owned().await {
            let Ok((stream, peer)) = listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let render = Arc::clone(&render);
            tokio::spawn(async move {
                let answered = timeout(PATIENCE, answer(stream, &*render)).await;
                if let Err(error) = answered.unwrap_or(Ok(())) {
                    debug!(%peer, "metrics: {error}");
                }
                drop(permit);
            });
        }
    });
    Ok(bound)
}

async fn answer<R: Future<Output = String>>(
    mut stream: TcpStream,
    render: &impl Fn() -> R,
) -> io::Result<()> {
    // The request does not matter, but a client may not like an answer before it has sent it.
    let mut request = Vec::new();
    while !request.windows(4).any(|end| end == b"\r\n\r\n") && request.len() < REQUEST_BYTES_MAX {
        if stream.read_buf(&mut request).await? == 0 {
            break;
        }
    }
    let text = render().await;
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n",
        text.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(text.as_bytes()).await?;
    stream.shutdown().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_request_is_answered_with_the_text_of_then() {
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let address = listen(address, || async { "up 1\n".to_owned() }).await.unwrap();
        for _ in 0..2 {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
            assert!(answer.contains("\r\nContent-Length: 5\r\n"), "{answer}");
            assert!(answer.ends_with("\r\n\r\nup 1\n"), "{answer}");
        }
    }
}

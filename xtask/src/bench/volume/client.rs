//! A client that does one thing at a time and looks at the clock.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use crate::run::Result;

/// One connection to an export.
pub(super) struct Client {
    stream: UnixStream,
    cookie: u64,
}

fn words<T>(
    what: &str,
) -> impl FnOnce(std::io::Error) -> std::result::Result<T, String> + use<'_, T> {
    move |e| Err(format!("{what}: {e}"))
}

impl Client {
    /// Connects by the oldest option, which needs the fewest messages. `None` if nobody listens yet.
    pub(super) fn connect(socket: &Path, export: &str) -> Result<Option<Client>> {
        let Ok(mut stream) = UnixStream::connect(socket) else { return Ok(None) };
        let mut greeting = [0; 18];
        if stream.read_exact(&mut greeting).is_err() {
            return Ok(None);
        }
        let mut option = 3_u32.to_be_bytes().to_vec();
        option.extend(b"IHAVEOPT");
        option.extend(1_u32.to_be_bytes());
        option.extend((export.len() as u32).to_be_bytes());
        option.extend(export.as_bytes());
        stream.write_all(&option).or_else(words("handshake"))?;
        stream.read_exact(&mut [0; 10]).or_else(words("handshake"))?;
        Ok(Some(Client { stream, cookie: 0 }))
    }

    fn request(&mut self, kind: u16, offset: u64, len: usize, data: &[u8]) -> Result {
        self.cookie += 1;
        let mut request = 0x2560_9513_u32.to_be_bytes().to_vec();
        request.extend([0, 0]);
        request.extend(kind.to_be_bytes());
        request.extend(self.cookie.to_be_bytes());
        request.extend(offset.to_be_bytes());
        request.extend((len as u32).to_be_bytes());
        request.extend(data);
        self.stream.write_all(&request).or_else(words("request"))?;
        let mut reply = [0; 16];
        self.stream.read_exact(&mut reply).or_else(words("reply"))?;
        match reply {
            [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0, ..] => Ok(()),
            _ => Err(format!("request {kind} at {offset} was answered by {reply:x?}")),
        }
    }

    /// Reads a block.
    pub(super) fn read(&mut self, offset: u64) -> Result<[u8; 4096]> {
        let mut block = [0; 4096];
        self.request(0, offset, block.len(), &[])?;
        self.stream.read_exact(&mut block).or_else(words("data"))?;
        Ok(block)
    }

    /// Writes a block.
    pub(super) fn write(&mut self, offset: u64, block: &[u8; 4096]) -> Result {
        self.request(1, offset, block.len(), block)
    }
}

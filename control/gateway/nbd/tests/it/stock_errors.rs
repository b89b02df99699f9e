//! libnbd's shell, told to break the rules: every option and every error.

use std::time::Duration;

use culvert_nbd::export::{BlockSizes, Features};
use culvert_nbd::memory::Memory;
use culvert_nbd::{ExportInfo, Limits, Shutdown};

use crate::support::{Gated, MIB, Served, eventually, nbdsh, serve};

fn served() -> Served {
    serve(Gated::new(MIB, false), Limits::default())
}

/// What the scripts have in common.
fn prelude(served: &Served) -> String {
    format!(
        "import errno\n\
         path = '{}'\n\
         def fails(number, call, *args):\n\
         \x20   try:\n\
         \x20       call(*args)\n\
         \x20   except nbd.Error as e:\n\
         \x20       assert e.errnum == number, (e.errno, str(e))\n\
         \x20   else:\n\
         \x20       raise AssertionError('it did not fail')\n",
        served.socket.display()
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn options_one_by_one() {
    let served = served();
    let script = "
h.set_opt_mode(True)
h.set_request_structured_replies(False)
h.connect_unix(path)
names = []
h.opt_list(lambda name, description: names.append((name, description)) and 0)
assert names == [('vol', 'gated')], names
h.set_full_info(True)
h.set_export_name('nothing')
fails(errno.ENOENT, h.opt_info)
h.set_export_name('vol')
h.opt_info()
assert h.get_size() == 1048576
assert h.get_export_description() == 'in memory'
assert not h.can_df()
h.opt_abort()
h = nbd.NBD()
h.set_opt_mode(True)
h.set_export_name('vol')
h.connect_unix(path)
listed = []
h.opt_list_meta_context(lambda name: listed.append(name) and 0)
assert listed == ['base:allocation', 'culvert:cache'], listed
h.add_meta_context('culvert:')
listed.clear()
h.opt_list_meta_context(lambda name: listed.append(name) and 0)
assert listed == ['culvert:cache'], listed
h.clear_meta_contexts()
h.add_meta_context('culvert:cache')
h.set_export_name('nothing')
fails(errno.ENOENT, h.opt_go)
h.set_export_name('vol')
h.opt_go()
assert h.can_df() and h.get_structured_replies_negotiated()
assert h.can_meta_context('culvert:cache') and not h.can_meta_context('base:allocation')
assert h.get_block_size(nbd.SIZE_MAXIMUM) == 32 << 20
h.shutdown()
h = nbd.NBD()
h.set_opt_mode(True)
h.connect_unix(path)
h.opt_abort()
assert h.aio_is_closed()
";
    nbdsh(&(prelude(&served) + script)).await;
    served.until_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coarse_export_is_for_those_that_ask_for_its_block_sizes() {
    let block_sizes = BlockSizes { minimum: 4096, ..BlockSizes::default() };
    let info = ExportInfo { block_sizes, features: Features::ALL, ..ExportInfo::new(MIB) };
    let memory = Memory::with_info(info);
    let served = serve(Gated { memory, ..Gated::new(MIB, false) }, Limits::default());
    let script = "
said = []
h.set_debug_callback(lambda context, message: said.append(message) and 0)
h.set_debug(True)
h.set_strict_mode(0)
h.set_opt_mode(True)
h.set_export_name('vol')
h.set_request_block_size(False)
h.connect_unix(path)
fails(errno.EINVAL, h.opt_go)
why = 'requests must be multiples of 4096 bytes'
assert any(why in message for message in said), said
h.set_request_block_size(True)
h.opt_go()
assert h.get_block_size(nbd.SIZE_MINIMUM) == 4096
fails(errno.EINVAL, h.pwrite, b'x' * 512, 0)
fails(errno.EINVAL, h.pread, 4096, 512)
h.pwrite(b'x' * 4096, 4096)
assert h.pread(4096, 4096) == b'x' * 4096
h.shutdown()
# Without GO there is no way to ask for them.
h = nbd.NBD()
h.set_handshake_flags(0)
h.set_export_name('vol')
try:
    h.connect_unix(path)
except nbd.Error:
    pass
else:
    raise AssertionError('it connected')
";
    nbdsh(&(prelude(&served) + script)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_break_the_rules() {
    let served = served();
    let script = "
h.set_strict_mode(0)
h.set_export_name('vol')
h.connect_unix(path)
size = h.get_size()
fails(errno.EINVAL, h.pread, 512, size)
fails(errno.EINVAL, h.pread, 513, size - 512)
fails(errno.ENOSPC, h.pwrite, b'x' * 512, size)
fails(errno.ENOSPC, h.zero, 1024, size - 512)
fails(errno.EINVAL, h.trim, 1024, size - 512)
fails(errno.EINVAL, h.cache, 1024, size - 512)
fails(errno.EINVAL, h.pread, 0, 0)
fails(errno.EINVAL, h.trim, 0, 0)
fails(errno.EINVAL, h.pread, 512, 0, nbd.CMD_FLAG_NO_HOLE)
fails(errno.EINVAL, h.pwrite, b'x' * 512, 0, nbd.CMD_FLAG_DF)
fails(errno.EINVAL, h.flush, 1 << 9)
fails(errno.EINVAL, h.block_status, 512, 0, lambda *_: 0)
fails(errno.ENOTSUP, h.zero, 4096, 0, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FAST_ZERO)
h.pwrite(b'y' * 4096, 0, nbd.CMD_FLAG_FUA)
h.zero(4096, 4096, nbd.CMD_FLAG_FAST_ZERO)
h.cache(size, 0)
chunks = []
def chunk(data, offset, status, error):
    chunks.append((len(data), offset, status))
h.pread_structured(12288, 0, chunk)
assert chunks == [(4096, 0, nbd.READ_DATA), (8192, 4096, nbd.READ_HOLE)], chunks
chunks.clear()
h.pread_structured(12288, 0, chunk, nbd.CMD_FLAG_DF)
assert chunks == [(12288, 0, nbd.READ_DATA)], chunks
h.shutdown()

h = nbd.NBD()
h.set_strict_mode(0)
h.set_export_name('ro')
h.connect_unix(path)
assert h.is_read_only()
fails(errno.EPERM, h.pwrite, b'x' * 512, 0)
h.shutdown()
";
    nbdsh(&(prelude(&served) + script)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_requests_in_flight_come_back_each_to_its_own() {
    let served = served();
    let script = "
h.set_export_name('vol')
h.connect_unix(path)
def block(i):
    return bytes([i]) * 4096
def finish(cookies):
    for cookie in cookies:
        while not h.aio_command_completed(cookie):
            h.poll(-1)
data = [nbd.Buffer.from_bytearray(bytearray(block(i))) for i in range(128)]
finish([h.aio_pwrite(data[i], i * 4096) for i in range(128)])
buffers = [nbd.Buffer(4096) for i in range(128)]
finish([h.aio_pread(buffers[i], i * 4096) for i in range(128)])
for i in range(128):
    assert bytes(buffers[i].to_bytearray()) == block(i), i
h.shutdown()
";
    nbdsh(&(prelude(&served) + script)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_shuts_down_says_so() {
    let served = served();
    let script = "
import time
h.set_export_name('vol')
h.connect_unix(path)
h.pwrite(b'x' * 512, 0)
for i in range(1000):
    try:
        h.pread(512, 0)
    except nbd.Error as e:
        assert e.errnum == errno.ESHUTDOWN, str(e)
        break
    time.sleep(0.01)
else:
    raise AssertionError('it did not shut down')
h.shutdown()
";
    let script = prelude(&served) + script;
    let shell = tokio::spawn(async move { nbdsh(&script).await });
    eventually(|| served.export.memory.allocated_bytes() > 0).await;
    let how = Shutdown { linger: Duration::from_secs(20), ..Shutdown::default() };
    served.server.shutdown(how).await;
    shell.await.unwrap();
}

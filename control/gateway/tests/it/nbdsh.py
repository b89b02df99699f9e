import errno

path = "SOCKET"


def fails(number, call, *args):
    try:
        call(*args)
    except nbd.Error as e:
        assert e.errnum == number, (e.errno, str(e))
    else:
        raise AssertionError("it did not fail")


def opened(name):
    h = nbd.NBD()
    h.set_strict_mode(0)
    h.add_meta_context("base:allocation")
    h.add_meta_context("culvert:cache")
    h.set_export_name(name)
    h.connect_unix(path)
    return h


def heard(h):
    """What libnbd hears of the server from now on."""
    said = []
    h.set_debug_callback(lambda context, message: said.append(message) and 0)
    h.set_debug(True)
    return said


# Options: LIST, INFO, LIST_META_CONTEXT, SET_META_CONTEXT, GO, ABORT, EXPORT_NAME.
h = nbd.NBD()
h.set_opt_mode(True)
h.connect_unix(path)
names = []
h.opt_list(lambda name, description: names.append(name) and 0)
assert names == ["vol"], names
h.set_export_name("nothing")
fails(errno.ENOENT, h.opt_info)
fails(errno.ENOENT, h.opt_go)
fails(errno.ENOTSUP, h.opt_list_meta_context, lambda name: 0)
h.set_export_name("vol;generation=1")
fails(errno.ENOTSUP, h.opt_go)
h.set_full_info(True)
h.set_export_name("vol")
h.opt_info()
assert h.get_size() == 8 << 20 and h.get_export_description() == "cached volume vol"
contexts = []
h.opt_list_meta_context(lambda name: contexts.append(name) and 0)
assert contexts == ["base:allocation", "culvert:cache"], contexts
contexts.clear()
h.add_meta_context("x-other:thing")
h.opt_list_meta_context(lambda name: contexts.append(name) and 0)
assert contexts == [], contexts
# More than 64 KiB of one option are skipped, and the next one is understood.
for number in range(17):
    h.add_meta_context("x-other:" + str(number) + "x" * 4000)
said = heard(h)
fails(errno.ENOTSUP, h.opt_list_meta_context, lambda name: 0)
assert any("more than 65536 bytes of data" in message for message in said), said
h.set_debug(False)
h.clear_meta_contexts()
h.add_meta_context("culvert:cache")
h.set_request_block_size(False)
h.opt_go()
assert h.can_meta_context("culvert:cache") and not h.can_meta_context("base:allocation")
assert h.can_multi_conn() and h.can_fua() and h.can_cache() and h.can_fast_zero() and h.can_df()
assert h.get_block_size(nbd.SIZE_PREFERRED) == 4096
h.shutdown()
h = nbd.NBD()
h.set_opt_mode(True)
h.connect_unix(path)
h.opt_abort()
assert h.aio_is_closed()
# STARTTLS: refused; whoever can do without goes on, the others leave.
h = nbd.NBD()
said = heard(h)
h.set_tls(nbd.TLS_ALLOW)
h.set_export_name("vol")
h.connect_unix(path)
assert any("refused TLS (not supported)" in message for message in said), said
assert not h.get_tls_negotiated() and h.get_structured_replies_negotiated()
h.shutdown()
h = nbd.NBD()
h.set_tls(nbd.TLS_REQUIRE)
h.set_export_name("vol")
fails(errno.ENOTSUP, h.connect_unix, path)

# Without structured replies, and behind EXPORT_NAME with and without its zeroes: the same in simple replies.
simple = [
    (nbd.HANDSHAKE_FLAG_FIXED_NEWSTYLE | nbd.HANDSHAKE_FLAG_NO_ZEROES, "newstyle-fixed"),
    (nbd.HANDSHAKE_FLAG_NO_ZEROES, "newstyle"),
    (0, "newstyle"),
]
for number, (flags, protocol) in enumerate(simple):
    at = (4 << 20) + number * 65536
    h = nbd.NBD()
    h.set_strict_mode(0)
    h.set_handshake_flags(flags)
    h.set_request_structured_replies(False)
    h.set_export_name("vol")
    h.connect_unix(path)
    assert h.get_protocol() == protocol and h.get_size() == 8 << 20
    assert not h.get_structured_replies_negotiated() and not h.can_df()
    h.pwrite(b"s" * 700, at + 100, nbd.CMD_FLAG_FUA)
    h.pwrite(b"t" * 8192, at + 4096)
    h.zero(4096, at + 4096)
    h.trim(4096, at + 12288)
    h.cache(16384, at)
    h.flush()
    assert h.pread(4096, at) == bytes(100) + b"s" * 700 + bytes(3296)
    assert h.pread(12288, at + 4096) == bytes(4096) + b"t" * 4096 + bytes(4096)
    fails(errno.EINVAL, h.pread, 512, 8 << 20)
    fails(errno.ENOSPC, h.pwrite, b"x" * 512, 8 << 20)
    fails(errno.EINVAL, h.block_status, 4096, at, lambda *_: 0)
    fails(errno.EINVAL, h.pread_structured, 512, at, lambda *_: 0, nbd.CMD_FLAG_DF)
    # After errors it is still in step.
    assert h.pread(3, at + 799) == b"s\0\0"
    h.shutdown()
# EXPORT_NAME has no answer for what is not there but to hang up.
h = nbd.NBD()
h.set_handshake_flags(0)
h.set_export_name("nothing")
try:
    h.connect_unix(path)
except nbd.Error:
    pass
else:
    raise AssertionError("it connected")

# Requests, and what they are refused with.
h = opened("vol")
size = h.get_size()
fails(errno.EINVAL, h.pread, 512, size)
fails(errno.ENOSPC, h.pwrite, b"x" * 512, size)
fails(errno.ENOSPC, h.zero, 1024, size - 512)
fails(errno.EINVAL, h.trim, 1024, size - 512)
fails(errno.EINVAL, h.cache, 1024, size - 512)
fails(errno.EINVAL, h.pread, 0, 0)
fails(errno.EINVAL, h.pread, 512, 0, nbd.CMD_FLAG_NO_HOLE)
fails(errno.EINVAL, h.pwrite, b"x" * 512, 0, nbd.CMD_FLAG_DF)
fails(errno.EINVAL, h.flush, 1 << 9)
h.pwrite(b"a" * 4096, 4096, nbd.CMD_FLAG_FUA)
h.pwrite(b"b" * 700, 12000)
h.zero(4096, 16384, nbd.CMD_FLAG_FAST_ZERO)
h.zero(4096, 20480, nbd.CMD_FLAG_NO_HOLE)
h.trim(4096, 24576)
# Zeros that may need the rest of a block first are not fast, and then nothing happens.
h.pwrite(b"c" * 4096, 28672)
for offset, length in [(28672, 512), (28672 + 512, 4096 - 512), (28672 + 1, 8192)]:
    fails(errno.ENOTSUP, h.zero, length, offset, nbd.CMD_FLAG_FAST_ZERO)
    fails(errno.ENOTSUP, h.zero, length, offset, nbd.CMD_FLAG_FAST_ZERO | nbd.CMD_FLAG_NO_HOLE)
assert h.pread(4096, 28672) == b"c" * 4096
h.zero(512, 28672)
assert h.pread(4096, 28672) == bytes(512) + b"c" * 3584
h.zero(4096, 32768, nbd.CMD_FLAG_FAST_ZERO | nbd.CMD_FLAG_NO_HOLE)
h.cache(size, 0)
h.flush()
assert h.pread(700, 12000) == b"b" * 700
chunks = []
h.pread_structured(16384, 0, lambda data, at, status, e: chunks.append((at, len(data), status)) and 0)
assert chunks[0] == (0, 4096, nbd.READ_HOLE), chunks
assert (4096, 4096, nbd.READ_DATA) in [(at, min(n, 4096), s) for at, n, s in chunks], chunks
chunks.clear()
h.pread_structured(16384, 0, lambda data, at, status, e: chunks.append((at, len(data), status)) and 0, nbd.CMD_FLAG_DF)
assert chunks == [(0, 16384, nbd.READ_DATA)], chunks
found = {}
h.block_status(size, 0, lambda context, at, extents, e: found.setdefault(context, extents) and 0)
assert set(found) == {"base:allocation", "culvert:cache"}, found
assert found["base:allocation"][:4] == [4096, 3, 12288, 0], found
# Hole is 1, zero is 2: zeros that were asked for without a hole are none, what was trimmed is one.
flags = []
for length, flag in zip(found["base:allocation"][::2], found["base:allocation"][1::2]):
    flags += [flag] * (length // 4096)
assert flags[5] == 2 and flags[8] == 2, flags[:10]
assert flags[6] == 3 and flags[7] == 0 and flags[9] == 3, flags[:10]
# Dirty is 2, cached is 1; what was written lately is both.
assert found["culvert:cache"][3] & 1 == 1, found
h.shutdown()

h = opened("vol;ro")
assert h.is_read_only()
fails(errno.EPERM, h.pwrite, b"x" * 512, 0)
fails(errno.EPERM, h.zero, 4096, 0)
fails(errno.EPERM, h.trim, 4096, 0)
assert h.pread(1, 4096) == b"a"
h.shutdown()

# Of one session the later generation puts the former out, by whichever name of the volume each came.
for number, (former, later) in enumerate([("vol", "vol"), ("", "vol"), ("vol", "")]):
    session = ";session=s" + str(number)
    first = opened(former + session)
    first.pwrite(b"1" * 512, 0)
    second = opened(later + session + ";generation=1")
    assert second.pread(1, 0) == b"1"
    try:
        first.pwrite(b"0" * 512, 0)
    except nbd.Error:
        pass
    else:
        raise AssertionError("the former connection still writes")
    assert second.pread(1, 0) == b"1"
    second.shutdown()

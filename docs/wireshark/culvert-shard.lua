-- Culvert's shard format (docs/shard-format.md) for Wireshark and tshark:
--
--     tshark -X lua_script:culvert-shard.lua -r capture.pcap -Y culvert_shard
--
-- The outer header only looks like TCP, whose dissector would take frames of equal length for repetitions. So packets
-- to the port of the format are taken before it. Shares are collected over the packets of a frame; the one that brings
-- the k-th shows the block that they rebuild, and what it says. The MAC is shown, not verified: that takes a key.

local PORT = 7472
local VERSION = 1
-- In the place of the version, in messages about blocks.
local REPAIR = 2
local MOD = 4294967296

local shard = Proto("culvert_shard", "Culvert shard format")

local KINDS = { [0] = "frame", [1] = "TCP", [2] = "datagrams" }
local f = shard.fields
f.srcport = ProtoField.uint16("culvert_shard.srcport", "Source port")
f.dstport = ProtoField.uint16("culvert_shard.dstport", "Destination port")
f.length = ProtoField.uint16("culvert_shard.length", "Length of the stream")
f.offset = ProtoField.uint16("culvert_shard.offset", "Offset")
f.frame = ProtoField.uint32("culvert_shard.frame", "Number of the frame", base.HEX)
f.flags = ProtoField.uint8("culvert_shard.flags", "Flags", base.HEX)
f.mss = ProtoField.uint16("culvert_shard.mss", "Bytes of a segment")
f.checksum = ProtoField.uint16("culvert_shard.checksum", "Checksum", base.HEX)
f.version = ProtoField.uint8("culvert_shard.version", "Version")
f.k = ProtoField.uint8("culvert_shard.k", "Shares needed (k)")
f.n = ProtoField.uint8("culvert_shard.n", "Shares sent (n)")
f.block_len = ProtoField.uint16("culvert_shard.block_len", "Bytes of the block")
f.segments = ProtoField.uint16("culvert_shard.segments", "Segments of the frame")
f.carriers = ProtoField.string("culvert_shard.carriers", "Segments with a share")
f.segment = ProtoField.uint16("culvert_shard.segment", "Segment")
f.share = ProtoField.uint8("culvert_shard.share", "Share")
f.share_bytes = ProtoField.bytes("culvert_shard.share_bytes", "Share's bytes")
f.payload = ProtoField.bytes("culvert_shard.payload", "Payload")
f.rebuilt = ProtoField.framenum("culvert_shard.rebuilt_in", "Block rebuilt in packet")
f.message = ProtoField.string("culvert_shard.message", "Message about the block")
f.kind = ProtoField.uint8("culvert_shard.block.kind", "Kind", base.DEC, KINDS)
f.vni = ProtoField.uint32("culvert_shard.block.vni", "VNI")
f.keyed = ProtoField.bool("culvert_shard.block.keyed", "With MAC")
f.key = ProtoField.uint8("culvert_shard.block.key", "Number of the key")
f.inner_mss = ProtoField.uint16("culvert_shard.block.mss", "MSS of the tenant")
f.template = ProtoField.bytes("culvert_shard.block.template", "Header template")
f.crc = ProtoField.uint32("culvert_shard.block.crc", "CRC32C", base.HEX)
f.crc_good = ProtoField.bool("culvert_shard.block.crc_good", "CRC32C is right")
f.mac = ProtoField.bytes("culvert_shard.block.mac", "MAC")

local e = {}
e.illegal = ProtoExpert.new("culvert_shard.illegal", "Illegal header", expert.group.MALFORMED, expert.severity.ERROR)
e.bad_sum = ProtoExpert.new("culvert_shard.bad_checksum", "Wrong checksum", expert.group.CHECKSUM, expert.severity.ERROR)
e.bad_block = ProtoExpert.new("culvert_shard.bad_block", "Shares that give no right block", expert.group.CHECKSUM,
    expert.severity.ERROR)
shard.experts = e

-- 32 bits without sign, whatever the version of Lua.
local function xor(a, b) return bit.bxor(a, b) % MOD end
local function shift(a, n) return math.floor(a / 2 ^ n) end
local function mul(a, b)
    local high, low = math.floor(a / 65536), a % 65536
    return (((high * b) % 65536) * 65536 + low * b) % MOD
end

local function spread(frame, stratum)
    local x = (frame + mul(0x9e3779b9, stratum + 1)) % MOD
    x = mul(xor(x, shift(x, 16)), 0x7feb352d)
    x = mul(xor(x, shift(x, 15)), 0x846ca68b)
    return xor(x, shift(x, 16))
end

-- The segments that carry a share, in the order of shares.
local function placement(frame, segments, n)
    local carriers = {}
    for j = 0, n - 1 do
        local start = math.floor(j * segments / n)
        local len = math.floor((j + 1) * segments / n) - start
        carriers[j] = start + math.floor(spread(frame, j) * len / MOD)
    end
    return carriers
end

-- GF(256) with 0x11d.
local EXP, LOG = {}, {}
do
    local x = 1
    for i = 0, 254 do
        EXP[i], EXP[i + 255], LOG[x] = x, x, i
        x = x * 2
        if x > 255 then x = bit.bxor(x, 0x11d) end
    end
end
local function gf_mul(a, b)
    if a == 0 or b == 0 then return 0 end
    return EXP[LOG[a] + LOG[b]]
end
local function gf_div(a, b)
    if a == 0 then return 0 end
    return EXP[(LOG[a] - LOG[b]) % 255]
end

-- The first k shares of any k: a table from number to ByteArray.
local function rebuild(shares, k, len)
    local known = {}
    for number in pairs(shares) do known[#known + 1] = number end
    table.sort(known)
    local block = {}
    for t = 0, k - 1 do
        for at = 0, len - 1 do
            local value = 0
            if shares[t] then
                value = shares[t]:get_index(at)
            else
                for i = 1, k do
                    local weight = 1
                    for j = 1, k do
                        if j ~= i then
                            local up, down = bit.bxor(t, known[j]), bit.bxor(known[i], known[j])
                            weight = gf_mul(weight, gf_div(up, down))
                        end
                    end
                    value = bit.bxor(value, gf_mul(weight, shares[known[i]]:get_index(at)))
                end
            end
            block[#block + 1] = value
        end
    end
    return block
end

local CRC = {}
for i = 0, 255 do
    local c = i
    for _ = 1, 8 do
        if c % 2 == 1 then c = xor(shift(c, 1), 0x82f63b78) else c = shift(c, 1) end
    end
    CRC[i] = c
end
local function crc32c(bytes)
    local c = MOD - 1
    for _, byte in ipairs(bytes) do c = xor(CRC[xor(c, byte) % 256], shift(c, 8)) end
    return xor(c, MOD - 1)
end

-- Frames by all that their segments have in common.
local frames, rebuilt_in = {}, {}
function shard.init() frames, rebuilt_in = {}, {} end

local function address_bytes(tvb, at, len, out)
    for i = 0, len - 1 do out[#out + 1] = tvb(at + i, 1):uint() end
end

-- What CRC and MAC cover besides the block.
local function pseudo_header(ip, header)
    local bytes = {}
    if ip(0, 1):bitfield(0, 4) == 4 then
        address_bytes(ip, 12, 4, bytes)
        address_bytes(ip, 16, 4, bytes)
    else
        address_bytes(ip, 8, 16, bytes)
        address_bytes(ip, 24, 16, bytes)
    end
    for _, range in ipairs({ { 4, 2 }, { 8, 4 }, { 14, 2 }, { 18, 2 } }) do
        address_bytes(header, range[1], range[2], bytes)
    end
    -- In messages about blocks, too, the version is that of the frame.
    bytes[#bytes - 1] = bytes[#bytes - 1] % 64 + VERSION * 64
    return bytes
end

local function sum_is_right(ip, tvb)
    local v6 = ip(0, 1):bitfield(0, 4) == 6
    local sum, len = 6 + tvb:len(), tvb:len()
    local first, last = 12, 19
    if v6 then first, last = 8, 39 end
    for at = first, last, 2 do sum = sum + ip(at, 2):uint() end
    local bytes = tvb:bytes()
    for at = 0, len - 2, 2 do sum = sum + bytes:get_index(at) * 256 + bytes:get_index(at + 1) end
    if len % 2 == 1 then sum = sum + bytes:get_index(len - 1) * 256 end
    while sum > 65535 do sum = sum % 65536 + math.floor(sum / 65536) end
    return sum == 65535
end

local function show_block(bytes, tree, ip, header)
    local array = ByteArray.new()
    array:set_size(#bytes)
    for i, byte in ipairs(bytes) do array:set_index(i - 1, byte) end
    local tvb = array:tvb("Information block")
    local keyed = tvb(0, 1):bitfield(4, 1) == 1
    local body = #bytes - 4 - (keyed and 8 or 0)
    local covered = pseudo_header(ip, header)
    for i = 1, body do covered[#covered + 1] = bytes[i] end
    local good = tvb(body, 4):uint() == crc32c(covered)
    local sub = tree:add(shard, tvb(), "Information block, " .. #bytes .. " bytes")
    local kind = tvb(0, 1):bitfield(0, 2)
    sub:add(f.kind, tvb(0, 1), kind)
    sub:add(f.vni, tvb(1, 3))
    sub:add(f.keyed, tvb(0, 1), keyed)
    if keyed then sub:add(f.key, tvb(0, 1), tvb(0, 1):bitfield(5, 3)) end
    sub:add(f.inner_mss, tvb(4, 2))
    local len = tvb(6, 1):uint()
    if len > 0 and 8 + len <= body then sub:add(f.template, tvb(8, len)) end
    sub:add(f.crc, tvb(body, 4))
    sub:add(f.crc_good, tvb(body, 4), good)
    if not good then sub:add_proto_expert_info(e.bad_block) end
    if keyed then sub:add(f.mac, tvb(body + 4, 8)) end
    return good, kind, tvb(1, 3):uint()
end

-- A block that is asked for, or sent alone.
local function show_message(tvb, sub, h, ip)
    local len = tvb:len() - 20
    if tvb(20, 1):bitfield(0, 2) ~= 3 then
        sub:add(f.message, tvb(20), "answer")
        if h.offset ~= 0 or len ~= h.block_len or len < 12 then
            sub:add_proto_expert_info(e.illegal)
            return "a block of the wrong length"
        end
        local bytes = {}
        address_bytes(tvb, 20, len, bytes)
        local good, kind, vni = show_block(bytes, sub, ip, tvb)
        return string.format("block: %s, VNI %d%s", KINDS[kind] or "illegal", vni, good and "" or ", wrong CRC")
    end
    sub:add(f.message, tvb(20), "request")
    if h.offset ~= 0 or len < h.block_len or len < 8 then
        sub:add_proto_expert_info(e.illegal)
        return "a request of the wrong length"
    end
    local covered = pseudo_header(ip, tvb)
    address_bytes(tvb, 20, 4, covered)
    local good = tvb(24, 4):uint() == crc32c(covered)
    sub:add(f.crc, tvb(24, 4))
    sub:add(f.crc_good, tvb(24, 4), good)
    if not good then sub:add_proto_expert_info(e.bad_block) end
    return "asks for the block"
end

-- The numbers of the header, nil where they contradict each other.
local function read(tvb)
    local urgent = tvb(18, 2):uint()
    local h = {
        length = tvb(4, 2):uint(),
        offset = tvb(6, 2):uint(),
        frame = tvb(8, 4):uint(),
        mss = tvb(14, 2):uint(),
        version = math.floor(urgent / 16384),
        k = math.floor(urgent / 2048) % 8 + 1,
        n = math.floor(urgent / 128) % 16 + 1,
        block_len = urgent % 128 * 4,
    }
    local flags = tvb(13, 1):uint()
    local legal = h.version == VERSION and h.k <= h.n and h.length > 0 and h.mss > 0 and (flags == 0x10 or flags == 0x18)
    if not legal or h.block_len < 12 or h.block_len > 276 then return h, false end
    h.segments = math.ceil(h.length / h.mss)
    h.share_len = math.ceil(h.block_len / h.k)
    local last = h.length - (h.segments - 1) * h.mss
    local stop = h.offset + tvb:len() - 20
    legal = h.segments <= 128 and h.segments >= h.n and last >= h.share_len and h.mss >= h.share_len
        and h.offset % h.mss == 0 and stop <= h.length and stop > h.offset
        and (stop == h.length or stop % h.mss == 0)
    return h, legal
end

local function dissect(tvb, pinfo, tree, ip)
    pinfo.cols.protocol = "Culvert shard"
    local h, legal = read(tvb)
    local sub = tree:add(shard, tvb(), "Culvert shard format")
    sub:add(f.srcport, tvb(0, 2))
    sub:add(f.dstport, tvb(2, 2))
    sub:add(f.length, tvb(4, 2))
    sub:add(f.offset, tvb(6, 2))
    sub:add(f.frame, tvb(8, 4))
    sub:add(f.flags, tvb(13, 1))
    sub:add(f.mss, tvb(14, 2))
    local sum = sub:add(f.checksum, tvb(16, 2))
    sub:add(f.version, tvb(18, 1), h.version)
    sub:add(f.k, tvb(18, 1), h.k)
    sub:add(f.n, tvb(18, 2), h.n)
    sub:add(f.block_len, tvb(19, 1), h.block_len)
    if tvb:len() == tvb:reported_len() and not sum_is_right(ip, tvb) then sum:add_proto_expert_info(e.bad_sum) end
    if h.version == REPAIR then
        pinfo.cols.info = string.format("frame %08x, %s", h.frame, show_message(tvb, sub, h, ip))
        return
    end
    if not legal then
        sub:add_proto_expert_info(e.illegal)
        return
    end
    sub:add(f.segments, tvb(4, 2), h.segments)
    local carriers, by_segment, list = placement(h.frame, h.segments, h.n), {}, {}
    for j = 0, h.n - 1 do
        by_segment[carriers[j]] = j
        list[#list + 1] = tostring(carriers[j])
    end
    sub:add(f.carriers, tvb(8, 4), table.concat(list, " "))

    local key = tostring(pinfo.src) .. tostring(pinfo.dst) .. tvb(0, 2):uint() .. "/" .. tostring(tvb(4, 2):bytes())
        .. tostring(tvb(8, 4):bytes()) .. tostring(tvb(14, 2):bytes()) .. tostring(tvb(18, 2):bytes())
    local state = frames[key]
    if not state then
        state = { shares = {}, count = 0 }
        frames[key] = state
    end
    local stop, at = h.offset + tvb:len() - 20, h.offset
    local first, said = math.floor(h.offset / h.mss), ""
    while at < stop do
        local i = math.floor(at / h.mss)
        local len = math.min(h.mss, h.length - at)
        local segment, start = sub:add(f.segment, tvb(20 + at - h.offset, len), i), 20 + at - h.offset
        local j = by_segment[i]
        if j then
            segment:add(f.share, tvb(start, h.share_len), j)
            segment:add(f.share_bytes, tvb(start, h.share_len))
            said = said .. " " .. j
            if not pinfo.visited and not state.shares[j] and state.count < h.k then
                state.shares[j] = tvb(start, h.share_len):bytes()
                state.count = state.count + 1
                if state.count == h.k then rebuilt_in[key] = pinfo.number end
            end
            start, len = start + h.share_len, len - h.share_len
        end
        if len > 0 then segment:add(f.payload, tvb(start, len)) end
        at = at + h.mss
    end
    local info = string.format("frame %08x, segment %d of %d", h.frame, first, h.segments)
    if math.ceil(stop / h.mss) - 1 > first then
        info = string.format("frame %08x, segments %d to %d of %d", h.frame, first, math.ceil(stop / h.mss) - 1, h.segments)
    end
    if said ~= "" then info = info .. ", share" .. said end
    local whole = rebuilt_in[key]
    if whole then
        sub:add(f.rebuilt, whole)
        if whole == pinfo.number then
            local block = rebuild(state.shares, h.k, h.share_len)
            for i = #block, h.block_len + 1, -1 do block[i] = nil end
            local good, kind, vni = show_block(block, sub, ip, tvb)
            info = info .. string.format(", block: %s, VNI %d", KINDS[kind] or "illegal", vni)
            if not good then info = info .. ", wrong CRC" end
            pinfo.cols.info = info
            if good and kind == 0 then
                local inner = tvb(20 + h.share_len):tvb()
                Dissector.get("eth_withoutfcs"):call(inner, pinfo, tree)
            end
            return
        end
    end
    pinfo.cols.info = info
end

-- Packets to the port are of the format; all else is TCP's.
local protocols = DissectorTable.get("ip.proto")
local tcp = protocols:get_dissector(6)
local wrapper = Proto("culvert_shard_or_tcp", "Culvert shard format, or TCP")
local sources = { v4 = { Field.new("ip.src"), Field.new("ip.dst") }, v6 = { Field.new("ipv6.src"), Field.new("ipv6.dst") } }

-- The header of the innermost IP packet: its addresses at the places that they have there.
local function ip_tvb()
    local function last(field)
        local all = { field() }
        return all[#all]
    end
    local function lay(size, first, src, dst, version)
        local array = ByteArray.new()
        array:set_size(size)
        for i = 0, size - 1 do array:set_index(i, 0) end
        array:set_index(0, version * 16)
        for n, field in ipairs({ src, dst }) do
            local bytes = field.range:bytes()
            for i = 0, bytes:len() - 1 do
                array:set_index(first + (n - 1) * bytes:len() + i, bytes:get_index(i))
            end
        end
        return array:tvb("Addresses")
    end
    local v6, v4 = last(sources.v6[1]), last(sources.v4[1])
    -- Where both are there, one is inside the other: the one that begins later.
    if v6 and (not v4 or v6.offset > v4.offset) then return lay(40, 8, v6, last(sources.v6[2]), 6) end
    if v4 then return lay(20, 12, v4, last(sources.v4[2]), 4) end
end

function wrapper.dissector(tvb, pinfo, tree)
    if tvb:len() >= 21 and tvb(2, 2):uint() == PORT and math.floor(tvb(12, 1):uint() / 16) == 5 then
        local ip = ip_tvb()
        if ip then
            dissect(tvb, pinfo, tree, ip)
            return tvb:len()
        end
    end
    return tcp:call(tvb, pinfo, tree)
end
protocols:set(6, wrapper)

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| culvert_wire_fuzz::shard_pairs(data));

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| culvert_dataplane_fuzz::shard_worker(data));

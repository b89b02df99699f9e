#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| culvert_volume_fuzz::volume_formats(data));

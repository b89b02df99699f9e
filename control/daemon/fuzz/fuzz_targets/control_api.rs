#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| culvert_daemon_fuzz::control_api(data));

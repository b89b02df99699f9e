//! Compiles the gRPC API with protox, so that no protoc need be installed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(
        ["culvert/v1/dataplane.proto", "culvert/v1/control.proto", "culvert/v1/gateway.proto"],
        ["proto"],
    )?;
    tonic_prost_build::configure()
        .emit_rerun_if_changed(false)
        // Keys are printed by nothing.
        .skip_debug(["culvert.v1.ShardKey"])
        .compile_fds(descriptors)?;
    Ok(())
}

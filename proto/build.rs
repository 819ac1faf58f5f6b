//! Compiles the wire contracts with protox, so that no `protoc` binary is needed.
use std::error::Error;

const PROTOS: [&str; 5] = [
    "protos/discovery.proto",
    "protos/workload.proto",
    "protos/authorization.proto",
    "protos/zds.proto",
    "protos/ca.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=protos");
    if std::env::var_os("CARGO_FEATURE_HANDOVER").is_some() {
        let descriptors = protox::compile(["protos/handover.proto"], ["protos"])?;
        tonic_prost_build::configure().build_client(false).build_server(false).compile_fds(descriptors)?;
    }
    if std::env::var_os("CARGO_FEATURE_GRPC").is_none() {
        return Ok(());
    }
    let descriptors = protox::compile(PROTOS, ["protos"])?;
    tonic_prost_build::configure()
        .build_client(true)
        .build_server(std::env::var_os("CARGO_FEATURE_SERVER").is_some())
        .compile_fds(descriptors)?;
    Ok(())
}

//! Reading what a view tells, for tests.

use isthmus_proto::workload::{Address, Service, Workload, address::Type};
use prost::Message as _;

use super::View;

/// The workload of that name.
pub(crate) fn workload_of(view: &View, name: &str) -> Workload {
    match decode(view, name) {
        Some(Type::Workload(workload)) => workload,
        other => panic!("{name}: {other:?} among {:?}", view.addresses.all().keys()),
    }
}

/// The service of that name.
pub(crate) fn service_of(view: &View, name: &str) -> Service {
    match decode(view, name) {
        Some(Type::Service(service)) => service,
        other => panic!("{name}: {other:?} among {:?}", view.addresses.all().keys()),
    }
}

fn decode(view: &View, name: &str) -> Option<Type> {
    let resource = view.addresses.get(name)?;
    Address::decode(resource.resource.as_ref()?.value.as_slice()).unwrap().r#type
}

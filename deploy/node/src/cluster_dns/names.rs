//! From names to addresses, and from a query's bytes to its answer's. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use serde_json::Value;
use simple_dns::rdata::{A, RData};
use simple_dns::{CLASS, OPCODE, Packet, PacketFlag, QTYPE, RCODE, ResourceRecord, TYPE};

use crate::endpoints;
use playground_k8s::manifest::object;

/// Seconds that an answer may be kept.
const TTL: u32 = 5;

/// Every name of the cluster, in lower case, with its addresses.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Names(BTreeMap<String, BTreeSet<Ipv4Addr>>);

impl Names {
    /// The names of these Services: the ClusterIP, or the ready pods of a headless one.
    pub(super) fn of<'a>(
        domain: &str,
        services: impl Iterator<Item = &'a Value>,
        pods: impl Iterator<Item = &'a Value> + Clone,
    ) -> Self {
        let named = services.map(|service| {
            let name = format!("{}.{}.svc.{domain}", object::name(service), object::namespace(service));
            let headless = object::text(service, "/spec/clusterIP") == "None";
            let addresses = match headless {
                true => endpoints::pod_addresses(service, pods.clone())
                    .into_iter()
                    .filter_map(|ip| if let std::net::IpAddr::V4(ip) = ip { Some(ip) } else { None })
                    .collect(),
                false => endpoints::addresses(service, &[]),
            };
            (name.to_lowercase(), addresses)
        });
        Self(named.collect())
    }

    /// The answer to a query, or nothing for what is none.
    pub(super) fn answer(&self, query: &[u8]) -> Option<Vec<u8>> {
        let query = Packet::parse(query).ok().filter(|packet| !packet.has_flags(PacketFlag::RESPONSE))?;
        let mut answer = Packet::new_reply(query.id());
        answer.set_flags(PacketFlag::AUTHORITATIVE_ANSWER | PacketFlag::RECURSION_AVAILABLE);
        if query.has_flags(PacketFlag::RECURSION_DESIRED) {
            answer.set_flags(PacketFlag::RECURSION_DESIRED);
        }
        *answer.opcode_mut() = query.opcode();
        match &query.questions[..] {
            [question] if query.opcode() == OPCODE::StandardQuery => {
                let name = question.qname.to_string().to_lowercase();
                match self.0.get(&name) {
                    None => *answer.rcode_mut() = RCODE::NameError,
                    Some(addresses) if question.qtype == QTYPE::TYPE(TYPE::A) => {
                        let record = |ip: &Ipv4Addr| {
                            let data = RData::A(A { address: ip.to_bits() });
                            ResourceRecord::new(question.qname.clone(), CLASS::IN, TTL, data)
                        };
                        answer.answers.extend(addresses.iter().map(record));
                    }
                    // The name exists, without a record of that type.
                    Some(_) => {}
                }
            }
            _ => *answer.rcode_mut() = RCODE::NotImplemented,
        }
        answer.questions.clone_from(&query.questions);
        answer.build_bytes_vec_compressed().ok()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use simple_dns::{Name, QCLASS, Question};

    use super::*;

    fn names() -> Names {
        let meta = |name: &str| json!({"namespace": "sample", "name": name});
        let services = [
            json!({"metadata": meta("hello"), "spec": {"clusterIP": "172.21.0.7"}}),
            json!({"metadata": meta("headless"), "spec": {"clusterIP": "None", "selector": {"app": "x"}}}),
        ];
        let pods = [json!({
            "metadata": {"namespace": "sample", "name": "p", "labels": {"app": "x"}},
            "status": {"podIP": "10.0.0.4", "conditions": [{"type": "Ready", "status": "True"}]},
        })];
        Names::of("cluster.local", services.iter(), pods.iter())
    }

    fn ask(name: &str, kind: TYPE) -> (RCODE, Vec<u32>) {
        let mut query = Packet::new_query(7);
        let name = Name::new(name).unwrap().into_owned();
        query.questions.push(Question::new(name, QTYPE::TYPE(kind), QCLASS::CLASS(CLASS::IN), false));
        let answer = names().answer(&query.build_bytes_vec().unwrap()).unwrap();
        let answer = Packet::parse(&answer).unwrap();
        assert_eq!((answer.id(), answer.questions.len()), (7, 1));
        let addresses = answer.answers.iter().map(|record| match &record.rdata {
            RData::A(a) => a.address,
            other => panic!("{other:?}"),
        });
        (answer.rcode(), addresses.collect())
    }

    #[test]
    fn services_answer_by_their_names() {
        let ip = |text: &str| text.parse::<Ipv4Addr>().unwrap().to_bits();
        let hello = ask("Hello.sample.svc.cluster.local", TYPE::A);
        assert_eq!(hello, (RCODE::NoError, vec![ip("172.21.0.7")]));
        assert_eq!(ask("headless.sample.svc.cluster.local", TYPE::A).1, [ip("10.0.0.4")]);
    }

    #[test]
    fn what_does_not_exist_is_told_from_what_has_no_such_record() {
        assert_eq!(ask("hello.sample.svc.cluster.local", TYPE::AAAA), (RCODE::NoError, vec![]));
        assert_eq!(ask("hello.sample", TYPE::A), (RCODE::NameError, vec![]));
        assert_eq!(ask("example.com", TYPE::A), (RCODE::NameError, vec![]));
    }

    #[test]
    fn garbage_and_answers_are_not_answered() {
        assert_eq!(names().answer(b"no dns"), None);
        let reply = Packet::new_reply(1).build_bytes_vec().unwrap();
        assert_eq!(names().answer(&reply), None);
    }
}

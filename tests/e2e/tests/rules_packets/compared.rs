//! What of a pod's rules is lost, as the comparison with the kernel sees it.

use isthmus_node::rules::{LOCAL_TABLE, Loss, MARK_MASK, RULE_PREFERENCE, SPOOFED_MARK};
use isthmus_sys::nft::Table;

use super::*;

fn kinds() -> [PodRules; 3] {
    let small = PodRules { ipv6: false, dns_capture: false, ..PodRules::default() };
    [PodRules::default(), PodRules { closing: true, canary: true, ..PodRules::default() }, small]
}

pub(crate) fn each_table_and_route_that_is_lost_is_noticed() -> anyhow::Result<()> {
    for pod in kinds() {
        let netns = Netns::create()?;
        let lost = || rules::compare_pod(&netns, &pod);
        ensure!(lost()? == Some(Loss::Tables), "there are no rules yet");
        let tables = rules::pod_ruleset(&pod).tables.into_iter().map(|table| table.name);
        for table in tables {
            rules::apply_pod(&netns, &pod)?;
            ensure!(lost()?.is_none());
            nft::remove(&netns, &[(Family::Inet, table.clone())])?;
            ensure!(lost()? == Some(Loss::Tables), "{table}");
        }
        for v6 in if pod.ipv6 { &[false, true][..] } else { &[false] } {
            rules::apply_pod(&netns, &pod)?;
            route::del_local_default(&netns, *v6, LOCAL_TABLE)?;
            ensure!(lost()? == Some(Loss::Routing), "the route, IPv6: {v6}");
            rules::apply_pod(&netns, &pod)?;
            route::del_fwmark_rule(&netns, *v6, SPOOFED_MARK, MARK_MASK, LOCAL_TABLE, RULE_PREFERENCE)?;
            ensure!(lost()? == Some(Loss::Routing), "the routing rule, IPv6: {v6}");
        }
        rules::apply_pod(&netns, &pod)?;
        ensure!(lost()?.is_none());
    }
    Ok(())
}

pub(crate) fn what_others_add_is_no_loss() -> anyhow::Result<()> {
    let (netns, pod) = (Netns::create()?, PodRules::default());
    rules::apply_pod(&netns, &pod)?;
    let table = Table { family: Family::Inet, name: "other".to_owned(), sets: vec![], chains: vec![] };
    nft::apply(&netns, &Ruleset { tables: vec![table] })?;
    ensure!(rules::compare_pod(&netns, &pod)?.is_none());
    Ok(())
}

pub(crate) fn a_pod_without_ipv6_lacks_nothing_of_ipv6() -> anyhow::Result<()> {
    let (netns, pod) = (Netns::create()?, PodRules::default());
    sysctl::write(&netns, "net/ipv6/conf/lo/disable_ipv6", "1")?;
    rules::apply_pod(&netns, &pod)?;
    ensure!(rules::compare_pod(&netns, &pod)?.is_none());
    Ok(())
}

//! Invalid settings, for each role.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Result, ensure};
use isthmus_kit::lab;
use isthmus_kit::probe;
use isthmus_kit::process::Process;
use isthmus_sys::netns::Netns;
use isthmus_sys::socket::{Sockets, Transparent};

use crate::agent_lab::{AgentLab, complaints, count};

/// Bad settings: the variable, its value (`None`: it is not set), and what the line must contain besides its name.
type Row = (&'static str, Option<&'static str>, &'static str);

const COMMON: [Row; 2] = [("RUST_LOG", Some("isthmus=loud"), "loud"), ("LOG_FORMAT", Some("xml"), "plain")];
const AGENT: [Row; 9] = [
    ("PROXY_MODE", Some("dedicated"), "shared"),
    ("PROXY_CONFIG", Some("statsPort: 70000"), "statsPort: 70000"),
    ("IPV6_ENABLED", Some("perhaps"), "true or false"),
    ("LOCAL_XDS_PATH", Some("/nowhere/local.yaml"), "No such file"),
    ("POOL_UNUSED_RELEASE_TIMEOUT", Some("soon"), "duration"),
    ("KEEPALIVE_RETRIES", Some("many"), "number"),
    ("ENABLE_ORIG_SRC", Some("perhaps"), "true or false"),
    ("ISTIO_META_DNS_PROXY_ADDR", Some("0.0.0.0:53"), "localhost:<port>"),
    ("ZTUNNEL_WORKER_THREADS", Some("101%"), "percentage"),
];
const NODE: [Row; 7] = [
    ("NODE_NAME", None, "which pods"),
    ("KUBECONFIG", Some("/nowhere/kubeconfig"), "No such file"),
    ("AMBIENT_IPV6", Some("perhaps"), "true or false"),
    ("AMBIENT_ENABLEMENT_SELECTOR", Some("podSelektor"), "sequence"),
    ("HOST_PROBE_SNAT_IP", Some("169.254.7.300"), "IPv4"),
    ("HOST_PROBE_SNAT_IPV6", Some("fd16::g"), "IPv6"),
    ("HEALTH_PORT", Some("99999"), "port"),
];
const GATEWAY: [Row; 6] = [
    ("POD_NAMESPACE", None, "identity"),
    ("SERVICE_ACCOUNT", None, "identity"),
    ("KUBECONFIG", None, "API server"),
    ("GATEWAY_HBONE_PORT", Some("hbone"), "port"),
    ("GATEWAY_SNI_ROUTES", Some("15012=istiod"), "<port>=<server name>@"),
    ("GATEWAY_TCP_ROUTES", Some("80=10.0.0.1"), "<port>=<host or address>"),
];

/// Occupies every port that a role opens by itself: a start that came so far would report it.
fn take_all_ports() -> Result<Vec<tokio::net::TcpListener>> {
    let take = |port| {
        let any = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port);
        Ok(Sockets::host().listen(any, Transparent::Never)?.0)
    };
    [15000, 15020, 15021, 15014, 8000, 15008].into_iter().map(take).collect()
}

pub(crate) fn every_bad_setting_is_named_before_the_role_does_anything() -> Result<()> {
    lab::block_on(async {
        let (own, dir, _taken) = (Netns::current()?, tempfile::tempdir()?, take_all_ports()?);
        let path = |name: &str| dir.path().join(name).display().to_string();
        let (kubeconfig, run, zds) = (path("kubeconfig"), path("run"), path("zds/z.sock"));
        fs::write(&kubeconfig, isthmus_kit::kube::kubeconfig("http://127.0.0.1:1"))?;
        // Everything valid, so that every other line is about the bad settings.
        let places =
            [("CNI_AGENT_RUN_DIR", run.as_str()), ("ZTUNNEL_UDS_ADDRESS", &zds), ("INPOD_UDS", &zds)];
        let gateway: Vec<Row> = AGENT.into_iter().chain(GATEWAY).collect();
        for (role, own_rows) in [("agent", &AGENT[..]), ("node", &NODE), ("gateway", &gateway)] {
            let rows: Vec<Row> = own_rows.iter().chain(&COMMON).copied().collect();
            let mut env: Vec<_> = rows.iter().filter_map(|(key, value, _)| Some((*key, (*value)?))).collect();
            env.extend(places);
            env.push(("FAKE_CA", "true"));
            let ran = Process::start(&own, "isthmus", &[role], &env, "")?.ended().await?;
            ensure!(ran.status.code() == Some(64), "{role}: {ran:#?}");
            let said = ran.stream(true);
            for (key, value, why) in &rows {
                let names = |line: &&&str| {
                    line.contains(key) && line.contains(value.unwrap_or_default()) && line.contains(why)
                };
                ensure!(said.iter().filter(names).count() == 1, "{role}: {key} in {said:#?}");
            }
            ensure!(said.len() == rows.len() && ran.stream(false).is_empty(), "{role}: {ran:#?}");
        }
        // Control: the same start without the mistakes reaches the ports, which is another exit code.
        let good = [
            ("NODE_NAME", "n0"),
            ("LOCAL_XDS", "workloads: []"),
            ("FAKE_CA", "true"),
            ("POD_NAMESPACE", "ns"),
            ("SERVICE_ACCOUNT", "sa"),
            ("KUBECONFIG", &kubeconfig),
        ];
        for role in ["agent", "node", "gateway"] {
            let env: Vec<_> = good.into_iter().chain(places).collect();
            let ran = Process::start(&own, "isthmus", &[role], &env, "")?.ended().await?;
            let said = ran.stream(true).concat();
            ensure!(ran.status.code() == Some(1) && said.contains("in use"), "{role}: {ran:#?}");
        }
        let left: Vec<_> = fs::read_dir(dir.path())?.flatten().map(|entry| entry.file_name()).collect();
        ensure!(left == ["kubeconfig"], "the start changed files: {left:?}");
        Ok(())
    })
}

pub(crate) fn an_unknown_field_of_the_local_file_is_named() -> Result<()> {
    lab::block_on(async {
        let (own, dir) = (Netns::current()?, tempfile::tempdir()?);
        let (file, zds) = (dir.path().join("local.yaml"), dir.path().join("z.sock").display().to_string());
        let shown = file.display().to_string();
        let cases = [
            ("workload: []\n", "workload", None),
            (
                "workloads:\n- workloadIps: [10.0.0.1]\n  namespace: ns\n  services: {}\n  name: a\n  serviceAcount: b\n",
                "serviceAcount",
                Some("line 6"),
            ),
            (
                "services:\n- {name: a, namespace: ns, hostname: a.ns, vips: [], ports: {80: http}}\n",
                "ports",
                Some("line 2"),
            ),
            (
                "policies:\n- {name: a, namespace: ns, scope: Namespace, action: Permit, rules: []}\n",
                "Permit",
                None,
            ),
            ("workloads: [\n", "line", None),
        ];
        for (text, named, line) in cases {
            fs::write(&file, text)?;
            let env = [("FAKE_CA", "true"), ("LOCAL_XDS_PATH", shown.as_str()), ("INPOD_UDS", &zds)];
            let ran = Process::start(&own, "isthmus", &["proxy", "ztunnel"], &env, "")?.ended().await?;
            let said = ran.stream(true);
            ensure!(ran.status.code() == Some(64) && said.len() == 1, "{ran:#?}");
            ensure!(said[0].contains(&shown) && said[0].contains(named), "{text}: {said:?}");
            ensure!(line.is_none_or(|line| said[0].contains(line)), "{text}: {said:?}");
        }
        Ok(())
    })
}

pub(crate) fn an_unknown_key_of_the_proxy_config_only_warns() -> Result<()> {
    lab::block_on(async {
        let lab = AgentLab::new()?;
        let mut node = lab.node()?;
        let config = "statsPort: 15999\ntracing: {zipkin: {address: here}}\nholdApplication: true\n";
        let agent = lab.agent(&[("FAKE_CA", "true"), ("PROXY_CONFIG", config)])?;
        let _peer = lab.hand_over(&mut node).await?;
        lab.works().await?;
        for key in ["tracing", "holdApplication"] {
            ensure!(count(&agent, &["PROXY_CONFIG", key]) == 1, "{key}: {:#?}", complaints(&agent));
        }
        // The valid keys beside them take effect.
        ensure!(probe::get(&Netns::current()?, "127.0.0.1:15999", "/metrics").await?.status == 200);
        agent.stop().await?;
        Ok(())
    })
}

//! A real gateway in front of scripted pods; everything but the gateway is scripted.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use isthmus_identity::fake::FakeSigner;
use isthmus_identity::{CertSource as _, Manager, manager};
use isthmus_kit::hbone::{Frame, HbonePeer, flag, hex, kind};
use isthmus_kit::istiod::Istiod;
use isthmus_kit::kube::{self, Api};
use isthmus_kit::lab::{Host, Lan};
use isthmus_kit::pki::Ca;
use isthmus_kit::process::Process;
use isthmus_kit::tls;
use isthmus_kit::{probe, wait};
use isthmus_model::SpiffeId;
use isthmus_rt::task::Tasks;
use isthmus_sys::socket::{Sockets, Transparent};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};

/// Longest wait for what happens at once unless it is broken.
pub(crate) const SOON: Duration = Duration::from_secs(15);
pub(crate) const HBONE: u16 = 15008;
/// The TLS listener.
pub(crate) const TLS: u16 = 15443;
/// The plain TCP listener.
pub(crate) const PLAIN: u16 = 8080;
const API: u16 = 6443;
const CA_PORT: u16 = 15012;
/// SETTINGS_HEADER_TABLE_SIZE 0: the scripted peer keeps no dynamic table.
const NO_TABLE: &str = "000100000000";

/// Services, and the hosts with their only pods.
pub(crate) const SERVICES: [&str; 4] = ["hello", "slow", "private", "plain"];

/// A network with its gateway.
pub(crate) struct GatewayLab {
    lan: Lan,
    pub(crate) api: Api,
    gateway: Host,
    client: Host,
    /// The pods of [`SERVICES`].
    pods: Vec<Host>,
    /// A server outside the mesh.
    pub(crate) outside: Host,
    pub(crate) tasks: Tasks,
    dir: TempDir,
}

/// The client's side of an outer tunnel, frame by frame.
pub(crate) struct Tunnel(pub(crate) HbonePeer<tls::TlsStream<TcpStream>>);

/// Where clients of the gateway are.
#[derive(Clone)]
pub(crate) struct Dialer {
    from: Sockets,
    gateway: Ipv4Addr,
}

impl GatewayLab {
    /// Everything but the gateway. Services `hello` and `slow` are global.
    pub(crate) fn new() -> Result<Self> {
        let lan = Lan::new()?;
        let (gateway, client, outside) = (lan.host()?, lan.host()?, lan.host()?);
        let pods = SERVICES.iter().map(|_| lan.host()).collect::<Result<_>>()?;
        let (dir, tasks, api) = (tempfile::tempdir()?, Tasks::new("gateway lab"), Api::default());
        let address = SocketAddr::new(lan.v4.into(), API);
        std::fs::write(dir.path().join("kubeconfig"), kube::kubeconfig(&format!("http://{address}")))?;
        api.put("namespaces", kube::namespace("sample", &[]));
        for (name, global) in SERVICES.iter().zip([true, true, false, false]) {
            let labels: &[_] = if global { &[("istio.io/global", "true")] } else { &[] };
            api.put("services", kube::service("sample", name, labels));
        }
        let (listener, _) = lan.sockets().listen(address, Transparent::Never)?;
        api.serve(listener, &tasks);
        Ok(Self { lan, api, gateway, client, pods, outside, tasks, dir })
    }

    /// Starts the gateway and waits until it has read the global services.
    pub(crate) async fn gateway(&self) -> Result<Process> {
        self.gateway_with(&[]).await
    }

    /// As [`GatewayLab::gateway`], with more settings.
    pub(crate) async fn gateway_with(&self, more: &[(&str, &str)]) -> Result<Process> {
        let tls = format!(
            "{TLS}=istiod.istio-system.svc@{}:15012,{TLS}=plain.example@plain.sample.svc.cluster.local:80",
            self.outside.v4
        );
        let tcp = format!("{PLAIN}=plain.sample.svc.cluster.local:80");
        let own = [("FAKE_CA", "true"), ("GATEWAY_SNI_ROUTES", tls.as_str()), ("GATEWAY_TCP_ROUTES", &tcp)];
        let gateway = self.start(&[&own, more].concat())?;
        gateway.line(&["gateway started"]).await?;
        let ready = async || match self.readiness().await {
            Ok((true, _)) => Some(Ok(())),
            Ok((false, pending)) if pending.contains("global services") => None,
            Ok((false, pending)) => Some(Err(anyhow::anyhow!(pending))),
            Err(error) => Some(Err(error)),
        };
        wait::within(SOON, ready).await.context("the gateway does not become ready")??;
        Ok(gateway)
    }

    /// Starts a gateway with more settings.
    pub(crate) fn start(&self, more: &[(&str, &str)]) -> Result<Process> {
        self.start_on(&self.gateway, more)
    }

    /// Starts another gateway, which no client uses.
    pub(crate) fn start_replica(&self, more: &[(&str, &str)]) -> Result<Process> {
        self.start_on(&self.outside, more)
    }

    /// Starts what istiod's template of class istio-east-west would: its arguments, and its names of the settings.
    pub(crate) fn start_deployed(&self, role: &str) -> Result<Process> {
        let (kubeconfig, local) = (self.dir.path().join("kubeconfig").display().to_string(), self.local());
        let labels = self.dir.path().join("labels");
        std::fs::write(&labels, "gateway.networking.k8s.io/gateway-name=\"eastwest\"\n")?;
        let env = [
            ("ISTIO_META_NETWORK", "west"),
            ("ISTIO_META_REQUESTED_NETWORK_VIEW", "west"),
            ("ISTIO_META_CLUSTER_ID", "west"),
            ("POD_NAME", "eastwest-1"),
            ("POD_NAMESPACE", "istio-system"),
            ("SERVICE_ACCOUNT", "eastwest"),
            ("PROXY_CONFIG", "{\"proxyMetadata\":{},\"drainDuration\":\"45s\"}"),
            ("POD_LABELS_PATH", &labels.display().to_string()),
            // In the place of istiod and of the service account.
            ("FAKE_CA", "true"),
            ("LOCAL_XDS", &local),
            ("KUBECONFIG", &kubeconfig),
        ];
        let args =
            ["proxy", role, "--domain", "istio-system.svc.cluster.local", "--log_output_level", "info"];
        Process::start(&self.gateway.netns, "isthmus", &args, &env, "")
    }

    fn start_on(&self, host: &Host, more: &[(&str, &str)]) -> Result<Process> {
        let (kubeconfig, local) = (self.dir.path().join("kubeconfig").display().to_string(), self.local());
        let mut env = vec![
            ("LOCAL_XDS", local.as_str()),
            ("NETWORK", "west"),
            ("POD_NAME", "eastwest-1"),
            ("POD_NAMESPACE", "istio-system"),
            ("SERVICE_ACCOUNT", "eastwest"),
            ("KUBECONFIG", &kubeconfig),
        ];
        env.extend(more);
        Process::start(&host.netns, "isthmus", &["gateway"], &env, "")
    }

    /// A gateway with the CA of a control plane, which knows it by its token only.
    pub(crate) fn gateway_with_ca(&self) -> Result<(Process, Istiod)> {
        let (listener, _) =
            self.gateway.sockets().listen((Ipv4Addr::LOCALHOST, CA_PORT).into(), Transparent::Never)?;
        let istiod = Istiod::start_on(listener, &Arc::new(Ca::new("gateway")?))?;
        let (token, root) = (self.dir.path().join("token"), self.dir.path().join("root.pem"));
        std::fs::write(&token, "system:serviceaccount:istio-system:eastwest")?;
        std::fs::write(&root, istiod.root_pem())?;
        let gateway = self.start(&[
            ("CA_ADDRESS", &istiod.url()),
            ("CA_ROOT_CA", &root.display().to_string()),
            ("AUTH_TOKEN", &token.display().to_string()),
            ("XDS_ADDRESS", ""),
        ])?;
        Ok((gateway, istiod))
    }

    /// Whether the gateway is ready, and what it waits for.
    pub(crate) async fn readiness(&self) -> Result<(bool, String)> {
        let answer = probe::get(&self.gateway.netns, "127.0.0.1:15021", "/healthz/ready").await?;
        Ok((answer.status == 200, answer.body))
    }

    fn local(&self) -> String {
        let (mut workloads, mut services) = (String::new(), String::new());
        for (at, (name, pod)) in SERVICES.iter().zip(&self.pods).enumerate() {
            let protocol = if *name == "plain" { "TCP" } else { "HBONE" };
            let hostname = format!("{name}.sample.svc.cluster.local");
            workloads += &format!(
                "- {{uid: w//Pod/sample/{name}, name: {name}, namespace: sample, serviceAccount: {name}, \
                 network: west, clusterId: w, workloadIps: [{}], protocol: {protocol}, node: n, \
                 services: {{sample/{hostname}: {{80: 8080}}}}}}\n",
                pod.v4
            );
            services += &format!(
                "- {{name: {name}, namespace: sample, hostname: {hostname}, vips: [west/10.96.0.{at}], \
                 ports: {{80: 8080}}}}\n"
            );
        }
        format!("workloads:\n{workloads}services:\n{services}")
    }

    /// The host of a service's pod.
    pub(crate) fn pod(&self, service: &str) -> Result<&Host> {
        let at = SERVICES.iter().position(|name| *name == service).context("no such service")?;
        Ok(&self.pods[at])
    }

    /// Where the HBONE port of a service's pod is.
    pub(crate) fn endpoint(&self, service: &str) -> Result<SocketAddr> {
        Ok(SocketAddr::new(self.pod(service)?.v4.into(), HBONE))
    }

    /// Listens at the HBONE address of a service's pod.
    pub(crate) fn serve(&self, service: &str) -> Result<TcpListener> {
        Ok(self.pod(service)?.sockets().listen(self.endpoint(service)?, Transparent::Never)?.0)
    }

    /// What clients of the gateway dial it with.
    pub(crate) fn dialer(&self) -> Dialer {
        Dialer { from: self.client.sockets(), gateway: self.gateway.v4 }
    }

    /// A plain connection to a port of the gateway.
    pub(crate) async fn dial(&self, port: u16) -> Result<TcpStream> {
        self.dialer().dial(port).await
    }

    /// The outer tunnel of a client in the mesh.
    pub(crate) async fn tunnel(&self) -> Result<Tunnel> {
        self.dialer().tunnel(&certificates(&self.tasks)).await
    }

    /// The address of the gateway's own network.
    pub(crate) fn node(&self) -> Ipv4Addr {
        self.lan.v4
    }
}

/// The certificates of clients in the mesh.
pub(crate) fn certificates(tasks: &Tasks) -> Manager {
    Manager::new(Arc::new(FakeSigner::new()), manager::Config::default(), tasks)
}

impl Dialer {
    /// A plain connection to a port of the gateway.
    pub(crate) async fn dial(&self, port: u16) -> Result<TcpStream> {
        Ok(self.from.connect(SocketAddr::new(self.gateway.into(), port), None, SOON).await?)
    }

    /// The outer tunnel of a client in the mesh.
    pub(crate) async fn tunnel(&self, certs: &Manager) -> Result<Tunnel> {
        let id =
            |account: &str| -> Result<SpiffeId> { Ok(format!("spiffe://cluster.local/{account}").parse()?) };
        let certificate = certs.certificate(&id("ns/sample/sa/sleep")?).await?;
        let expected = [id("ns/istio-system/sa/eastwest")?];
        let tcp = self.dial(HBONE).await?;
        let tls = tls::connect(certificate.client_tls(&expected).config(), tcp).await?;
        let mut peer = HbonePeer::client(tls).await?;
        peer.send(kind::SETTINGS, 0, 0, &hex(NO_TABLE)).await?;
        Ok(Tunnel(peer))
    }
}

impl Tunnel {
    /// Sends a CONNECT for a destination.
    pub(crate) async fn ask(&mut self, stream: u32, authority: &str) -> Result<()> {
        self.0.headers(stream, &[(":method", "CONNECT"), (":authority", authority)], false).await
    }

    /// The next frame of a stream; the connection's own settings are acknowledged.
    pub(crate) async fn next(&mut self) -> Result<Frame> {
        let read = async {
            loop {
                let frame = self.0.recv().await?.context("the gateway closed the tunnel")?;
                match frame.kind {
                    kind::SETTINGS if frame.flags & flag::ACK == 0 => self.0.ack_settings().await?,
                    kind::SETTINGS | kind::PING | kind::WINDOW_UPDATE => {}
                    _ => return Ok(frame),
                }
            }
        };
        tokio::time::timeout(SOON, read).await.context("no frame in time")?
    }

    /// The stream and the status of the next answer. Frames that end a refused stream are skipped.
    pub(crate) async fn answer(&mut self) -> Result<(u32, String)> {
        loop {
            let frame = self.next().await?;
            match frame.kind {
                kind::HEADERS => {
                    let headers = frame.headers()?;
                    let (_, status) =
                        headers.iter().find(|(name, _)| name == ":status").context("no status")?;
                    return Ok((frame.stream, status.clone()));
                }
                kind::DATA if frame.payload.is_empty() => {}
                kind::RST_STREAM => {}
                _ => bail!("no answer: {frame:?}"),
            }
        }
    }

    /// Bytes of one stream until there are `count`.
    pub(crate) async fn bytes(&mut self, stream: u32, count: usize) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        while bytes.len() < count {
            let frame = self.next().await?;
            ensure!(frame.kind == kind::DATA && frame.stream == stream, "{frame:?}");
            bytes.extend(frame.payload);
        }
        Ok(bytes)
    }
}

/// A destination by IP address.
pub(crate) fn by_number(address: impl Into<IpAddr>, port: u16) -> String {
    SocketAddr::new(address.into(), port).to_string()
}

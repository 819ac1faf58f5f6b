//! Congestion control of connections between the agent and the applications of its node: they cross no wire, so an
//! algorithm that paces (BBR) only costs them timers.

use std::ffi::OsString;
use std::io;
use std::str::FromStr;
use std::sync::Arc;

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{SockRef, Type};

use super::Sockets;
use crate::netns::Netns;
use crate::{Error, sysctl};

const SYSCTL: &str = "net/ipv4/tcp_congestion_control";
/// In place of an algorithm that paces. What it does not know of a wire it need not know here.
const UNPACED: &str = "cubic";

/// Which algorithm connections to applications have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum LocalCongestion {
    /// The namespace's, unless that paces and the kernel has another.
    #[default]
    Auto,
    /// The namespace's.
    System,
    /// The one of this name.
    Named(String),
}

/// An algorithm that the kernel has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Congestion(Arc<str>);

// === impl LocalCongestion ===

impl FromStr for LocalCongestion {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "auto" => Self::Auto,
            "system" => Self::System,
            name => Self::Named(name.to_owned()),
        })
    }
}

impl LocalCongestion {
    /// The algorithm to set in a namespace with this default.
    fn choice(&self, default: &str) -> Option<&str> {
        match self {
            Self::Auto => default.starts_with("bbr").then_some(UNPACED),
            Self::System => None,
            Self::Named(name) => (name != default).then_some(name),
        }
    }
}

// === impl Sockets ===

impl Sockets {
    /// Chooses the congestion control of [`Sockets::local`]. One that the kernel does not have, or that may not be used,
    /// leaves the namespace's in force, with a log line.
    #[must_use]
    pub fn with_local_congestion(self, wanted: &LocalCongestion) -> Self {
        let chosen = self.choose(wanted).unwrap_or_else(|error| {
            tracing::warn!(%error, "congestion control of connections to applications stays the system's");
            None
        });
        Self { local_congestion: chosen, ..self }
    }

    /// The factory for connections between the agent and applications of its node: of listeners, too, since accepted
    /// connections inherit it.
    #[must_use]
    pub fn local(&self) -> Self {
        Self { congestion: self.local_congestion.clone(), ..self.clone() }
    }

    fn choose(&self, wanted: &LocalCongestion) -> Result<Option<Congestion>, Error> {
        let default = match &self.netns {
            Some(netns) => sysctl::read(netns, SYSCTL)?,
            None => sysctl::read(&Netns::current()?, SYSCTL)?,
        };
        let Some(name) = wanted.choice(&default) else { return Ok(None) };
        let congestion = Congestion(name.into());
        let probe = self.open((std::net::Ipv4Addr::LOCALHOST, 0).into(), Type::STREAM)?;
        congestion.set(&SockRef::from(&probe)).map_err(Error::on("set TCP_CONGESTION to", name))?;
        Ok(Some(congestion))
    }
}

// === impl Congestion ===

impl Congestion {
    pub(super) fn set(&self, socket: &SockRef<'_>) -> io::Result<()> {
        setsockopt(&**socket, sockopt::TcpCongestion, &OsString::from(&*self.0)).map_err(io::Error::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_algorithm_that_paces_is_replaced() {
        let choice = |text: &str, default: &str| -> Option<String> {
            let wanted: LocalCongestion = text.parse().unwrap();
            wanted.choice(default).map(str::to_owned)
        };
        for (wanted, default, chosen) in [
            ("auto", "bbr", Some("cubic")),
            ("auto", "bbr2", Some("cubic")),
            ("auto", "cubic", None),
            ("auto", "reno", None),
            ("system", "bbr", None),
            ("reno", "cubic", Some("reno")),
            ("reno", "reno", None),
        ] {
            assert_eq!(choice(wanted, default).as_deref(), chosen, "{wanted} where {default} is the default");
        }
    }

    #[test]
    fn an_unknown_algorithm_leaves_the_default() {
        let named = LocalCongestion::Named("none-of-that-name".into());
        assert_eq!(Sockets::host().with_local_congestion(&named).local().congestion, None);
    }

    #[tokio::test]
    async fn accepted_and_dialled_local_connections_have_it() {
        let of = |stream: &tokio::net::TcpStream| {
            nix::sys::socket::getsockopt(stream, sockopt::TcpCongestion).unwrap().into_string().unwrap()
        };
        // Always allowed, whatever the default is.
        let sockets = Sockets::host().with_local_congestion(&LocalCongestion::Named("reno".into()));
        let any = (std::net::Ipv4Addr::LOCALHOST, 0).into();
        let (listener, _) = sockets.local().listen(any, super::super::Transparent::Never).unwrap();
        let to = listener.local_addr().unwrap();
        let second = std::time::Duration::from_secs(10);
        let near = sockets.local().connect_young(to, None, second).await.unwrap();
        let (accepted, _) = listener.accept().await.unwrap();
        assert_eq!(
            (of(&near).trim_end_matches('\0'), of(&accepted).trim_end_matches('\0')),
            ("reno", "reno")
        );
        let default = sysctl::read(&Netns::current().unwrap(), SYSCTL).unwrap();
        let far = sockets.connect(to, None, second).await.unwrap();
        assert_eq!(of(&far).trim_end_matches('\0'), default);
    }
}

//! The `baggage` header: labels of the workload at one end, for the metrics and logs of the other end. They prove nothing.

use std::fmt;

/// The labels. Empty text means unknown and is not written.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Baggage<'a> {
    /// `k8s.cluster.name`
    pub cluster: &'a str,
    /// `k8s.namespace.name`
    pub namespace: &'a str,
    /// `k8s.<kind>.name`: kind and name of the workload.
    pub workload: Option<(Kind, &'a str)>,
    /// `service.name`: the canonical name.
    pub service: &'a str,
    /// `service.version`: the canonical revision.
    pub version: &'a str,
    /// `cloud.region`
    pub region: &'a str,
    /// `cloud.availability_zone`
    pub zone: &'a str,
}

/// Kind of a workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A deployment's pod.
    Deployment,
    /// A cron job's pod.
    CronJob,
    /// A pod without a controller.
    Pod,
    /// A job's pod.
    Job,
}

impl Kind {
    const ALL: [Self; 4] = [Self::Deployment, Self::CronJob, Self::Pod, Self::Job];

    fn key(self) -> &'static str {
        match self {
            Self::Deployment => "k8s.deployment.name",
            Self::CronJob => "k8s.cronjob.name",
            Self::Pod => "k8s.pod.name",
            Self::Job => "k8s.job.name",
        }
    }
}

impl<'a> Baggage<'a> {
    /// Parses a header. Unknown keys and items without `=` are skipped; the last of duplicates wins.
    #[must_use]
    pub fn parse(text: &'a str) -> Self {
        let mut read = Self::default();
        for item in text.split(',') {
            let mut parts = item.split('=');
            let (Some(key), Some(value)) = (parts.next(), parts.next()) else { continue };
            let (key, value) = (key.trim(), value.trim());
            match key {
                "k8s.cluster.name" => read.cluster = value,
                "k8s.namespace.name" => read.namespace = value,
                "service.name" => read.service = value,
                "service.version" => read.version = value,
                "cloud.region" => read.region = value,
                "cloud.availability_zone" => read.zone = value,
                // A controller without a name is unknown.
                _ if value.is_empty() => {}
                _ => {
                    if let Some(kind) = Kind::ALL.into_iter().find(|kind| kind.key() == key) {
                        read.workload = Some((kind, value));
                    }
                }
            }
        }
        read
    }
}

impl fmt::Display for Baggage<'_> {
    /// The header's value; empty when no label is known.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, workload) = self.workload.map_or(("", ""), |(kind, name)| (kind.key(), name));
        let items = [
            ("k8s.cluster.name", self.cluster),
            ("k8s.namespace.name", self.namespace),
            (kind, workload),
            ("service.name", self.service),
            ("service.version", self.version),
            ("cloud.region", self.region),
            ("cloud.availability_zone", self.zone),
        ];
        let mut separator = "";
        for (key, value) in items.into_iter().filter(|(_, value)| !value.is_empty()) {
            write!(f, "{separator}{key}={value}")?;
            separator = ",";
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_written_in_ztunnels_order_and_parse_back() {
        let full = Baggage {
            cluster: "east",
            namespace: "sample",
            workload: Some((Kind::Deployment, "sleep")),
            service: "sleep",
            version: "v1",
            region: "r",
            zone: "z",
        };
        assert_eq!(
            full.to_string(),
            "k8s.cluster.name=east,k8s.namespace.name=sample,k8s.deployment.name=sleep,service.name=sleep,\
             service.version=v1,cloud.region=r,cloud.availability_zone=z"
        );
        assert_eq!(Baggage::parse(&full.to_string()), full);
        let little = Baggage { service: "x", ..Baggage::default() };
        assert_eq!(little.to_string(), "service.name=x");
    }

    #[test]
    fn malformed_items_are_skipped() {
        let read = Baggage::parse("x=1,,=,service.name,service.name=a,service.name=b=c,k8s.job.name=j");
        assert_eq!(read.service, "b");
        assert_eq!(read.workload, Some((Kind::Job, "j")));
    }
}

//! The `baggage` header: labels of the workload at one end, for the metrics and logs of the other end. They prove nothing.

use std::fmt;

/// The labels. Empty text means unknown and is not written.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Baggage {
    /// `k8s.cluster.name`
    pub cluster: String,
    /// `k8s.namespace.name`
    pub namespace: String,
    /// `k8s.<kind>.name`: kind and name of the workload.
    pub workload: Option<(Kind, String)>,
    /// `service.name`: the canonical name.
    pub service: String,
    /// `service.version`: the canonical revision.
    pub version: String,
    /// `cloud.region`
    pub region: String,
    /// `cloud.availability_zone`
    pub zone: String,
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

impl Baggage {
    /// Parses a header. Unknown keys and items without `=` are skipped; the last of duplicates wins.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut read = Self::default();
        for item in text.split(',') {
            let mut parts = item.split('=');
            let (Some(key), Some(value)) = (parts.next(), parts.next()) else { continue };
            let (key, value) = (key.trim(), value.trim().to_owned());
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

impl fmt::Display for Baggage {
    /// The header's value; empty when no label is known.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let workload = self.workload.as_ref();
        let items = [
            ("k8s.cluster.name", self.cluster.as_str()),
            ("k8s.namespace.name", &self.namespace),
            (workload.map_or("", |(kind, _)| kind.key()), workload.map_or("", |(_, name)| name)),
            ("service.name", &self.service),
            ("service.version", &self.version),
            ("cloud.region", &self.region),
            ("cloud.availability_zone", &self.zone),
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
            cluster: "east".into(),
            namespace: "sample".into(),
            workload: Some((Kind::Deployment, "sleep".into())),
            service: "sleep".into(),
            version: "v1".into(),
            region: "r".into(),
            zone: "z".into(),
        };
        assert_eq!(
            full.to_string(),
            "k8s.cluster.name=east,k8s.namespace.name=sample,k8s.deployment.name=sleep,service.name=sleep,\
             service.version=v1,cloud.region=r,cloud.availability_zone=z"
        );
        assert_eq!(Baggage::parse(&full.to_string()), full);
        let little = Baggage { service: "x".into(), ..Baggage::default() };
        assert_eq!(little.to_string(), "service.name=x");
    }

    #[test]
    fn malformed_items_are_skipped() {
        let read = Baggage::parse("x=1,,=,service.name,service.name=a,service.name=b=c,k8s.job.name=j");
        assert_eq!(read.service, "b");
        assert_eq!(read.workload, Some((Kind::Job, "j".into())));
    }
}

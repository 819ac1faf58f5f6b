//! Client of the mesh's CA: `istio.v1.auth.IstioCertificateService/CreateCertificate`. It knows how a certificate is
//! requested, not when: that is the identity crate's.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use isthmus_identity::{CertError, SignError, Signer};
use isthmus_model::SpiffeId;
use isthmus_proto::ca::istio_certificate_service_client::IstioCertificateServiceClient;
use isthmus_proto::ca::{IstioCertificateRequest, IstioCertificateResponse};
use isthmus_rt::BoxFuture;
use prost_types::value::Kind;
use prost_types::{Struct, Value};
use tonic::transport::Channel;
use tonic::{Code, Request, Status, TimeoutExpired};

use crate::channel::{ConfigError, Dialer, Server, find, message, status_text};

/// Settings of the client.
#[derive(Debug, Clone)]
pub struct Config {
    /// The CA.
    pub server: Server,
    /// Request certificates on behalf of this node's workloads (`ImpersonatedIdentity`). Off where the token is the
    /// workload's own.
    pub impersonate: bool,
    /// Deadline of one request.
    pub deadline: Duration,
}

/// Requests certificates over one connection, which is replaced when it breaks or when the current roots no longer trust
/// its server.
#[derive(Debug)]
pub struct CaClient {
    dialer: Dialer,
    client: Mutex<IstioCertificateServiceClient<Channel>>,
    impersonate: bool,
    deadline: Duration,
}

// === impl CaClient ===

impl CaClient {
    /// A client that connects on first use. Must be called within a runtime.
    ///
    /// # Errors
    /// When the settings can never work.
    pub fn new(config: Config) -> Result<Self, ConfigError> {
        let Config { server, impersonate, deadline } = config;
        server.check()?;
        let dialer = Dialer::new(server);
        let client = Mutex::new(IstioCertificateServiceClient::new(dialer.channel()?));
        Ok(Self { dialer, client, impersonate, deadline })
    }

    async fn client(&self) -> IstioCertificateServiceClient<Channel> {
        let fresh = match self.dialer.recheck().await {
            Ok(()) => None,
            Err(reason) => {
                tracing::warn!(address = %self.dialer.server().address, %reason, "the current roots do not trust the CA's certificate, reconnecting");
                // The address was valid when the client was made.
                self.dialer.channel().ok()
            }
        };
        let mut client = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(channel) = fresh {
            *client = IstioCertificateServiceClient::new(channel);
        }
        client.clone()
    }

    async fn request(&self, id: &SpiffeId, csr: String, ttl: Duration) -> Result<Vec<String>, SignError> {
        let impersonated = || {
            let identity = Value { kind: Some(Kind::StringValue(id.to_string())) };
            Struct { fields: BTreeMap::from([("ImpersonatedIdentity".to_owned(), identity)]) }
        };
        let mut request = Request::new(IstioCertificateRequest {
            csr,
            validity_duration: i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX),
            metadata: self.impersonate.then(impersonated),
        });
        request.set_timeout(self.deadline);
        let credentials = self.dialer.server().authorize(request.metadata_mut()).await;
        credentials.map_err(|error| SignError::Credentials { reason: error.to_string() })?;
        let response = self.client().await.create_certificate(request).await;
        let IstioCertificateResponse { cert_chain } =
            response.map_err(|status| self.sign_error(&status))?.into_inner();
        // Without roots beside the leaf no peer could be verified.
        if cert_chain.len() < 2 {
            return Err(SignError::BadAnswer(CertError::NoRoots(cert_chain.len())));
        }
        Ok(cert_chain)
    }

    fn sign_error(&self, status: &Status) -> SignError {
        let broken = std::error::Error::source(status).is_some();
        if find::<TimeoutExpired>(status).is_some() {
            return SignError::Deadline(self.deadline);
        }
        match status.code() {
            Code::DeadlineExceeded => SignError::Deadline(self.deadline),
            Code::Unavailable | Code::Unknown | Code::Cancelled if broken => SignError::Unreachable {
                address: self.dialer.server().address.clone(),
                reason: status_text(status),
            },
            code => SignError::Refused { code: format!("{code:?}"), message: message(status).to_owned() },
        }
    }
}

impl Signer for CaClient {
    fn sign(
        &self,
        id: &SpiffeId,
        csr_pem: String,
        ttl: Duration,
    ) -> BoxFuture<'_, Result<Vec<String>, SignError>> {
        let id = id.clone();
        Box::pin(async move {
            let request = self.request(&id, csr_pem, ttl);
            tokio::time::timeout(self.deadline, request)
                .await
                .unwrap_or(Err(SignError::Deadline(self.deadline)))
        })
    }
}

#[cfg(test)]
mod tests;

//! HTTP on one side, the verbs on the other: authentication, bodies, and which verb a request is.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, Limited, StreamBody};
use hyper::body::Incoming;
use serde_json::{Value, json};

use super::admission::Admission;
use super::controllers::{self, Settings};
use super::discovery;
use super::error::Error;
use super::selector::Selector;
use super::shape::Shape;
use super::store::{Key, Store, Tx, key_of};
use super::target::{Part, Query, Target};
use super::token::{API_AUDIENCE, Issuer, User};
use super::verbs::{self, Context, Deletion};
use super::watch::{Cursor, Wanted};
use crate::manifest::{Kind, object};

/// The largest body that is read.
const BODY: usize = 3 << 20;

/// A response's body: one piece, or a watch.
type Body = UnsyncBoxBody<Bytes, Infallible>;

/// One cluster's API.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) store: Arc<Store>,
    pub(super) issuer: Issuer,
    pub(super) admission: Admission,
    pub(super) settings: Settings,
    /// The token of the one caller that is no service account.
    pub(super) admin_token: String,
}

// === impl Server ===

impl Server {
    /// Answers one request; every error becomes a Status.
    pub(super) async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Response<Body> {
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        match self.route(request).await {
            Ok(response) => response,
            Err(error) => {
                tracing::debug!(%method, path, %error, "refused");
                json_response(error.code().0, &error.status())
            }
        }
    }

    /// Changes objects and lets the controllers follow.
    pub(super) fn change<T>(
        &self,
        f: impl FnOnce(&mut Tx<'_>, &Context<'_>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let context = Context { admission: &self.admission, now: SystemTime::now() };
        self.store.transaction(|tx| {
            let outcome = f(tx, &context)?;
            controllers::settle(tx, &context, &self.settings);
            Ok(outcome)
        })
    }

    async fn route(&self, request: Request<Incoming>) -> Result<Response<Body>, Error> {
        let target = Target::parse(request.uri().path())?;
        match &target {
            Target::Health => return Ok(text_response("ok")),
            Target::Version => {
                let version =
                    json!({"major": "1", "minor": "33", "gitVersion": "v1.33.0", "platform": "linux/amd64"});
                return Ok(json_response(StatusCode::OK, &version));
            }
            _ => {}
        }
        self.authenticate(request.headers())?;
        let query = Query::parse(request.uri().query().unwrap_or_default());
        let method = request.method().clone();
        let refused = || Error::Method(method.to_string(), request.uri().path().to_owned());
        match target {
            Target::Health | Target::Version => Err(refused()),
            Target::Discovery(path) => Ok(json_response(StatusCode::OK, &discovery::answer(&path)?)),
            Target::Collection(kind, namespace) => match method {
                Method::GET => self.list_or_watch(kind, namespace, &query, request.headers()),
                Method::POST => {
                    let object = body(request).await?;
                    let created = self.change(|tx, context| {
                        verbs::create(tx, context, kind, namespace.as_deref(), object)
                    })?;
                    Ok(json_response(StatusCode::CREATED, &created))
                }
                Method::DELETE => self.delete_collection(kind, namespace, &query),
                _ => Err(refused()),
            },
            Target::Object { kind, namespace, name, part } => {
                self.object(Key::new(kind, &namespace, &name), part, &query, request).await
            }
            Target::Token { namespace, account } if method == Method::POST => {
                let spec = body(request).await?;
                let now = SystemTime::now();
                let issue = |tx: &mut Tx<'_>| self.issuer.issue(tx, &namespace, &account, spec, now);
                Ok(json_response(StatusCode::CREATED, &self.store.transaction(issue)?))
            }
            Target::TokenReview if method == Method::POST => {
                let review = self.review(body(request).await?);
                Ok(json_response(StatusCode::CREATED, &review))
            }
            Target::Token { .. } | Target::TokenReview => Err(refused()),
        }
    }

    async fn object(
        &self,
        key: Key,
        part: Part,
        query: &Query,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, Error> {
        let shape = Shape::asked(text_header(request.headers(), &header::ACCEPT));
        let outcome = match *request.method() {
            Method::GET => {
                let found = self.store.transaction(|tx| tx.get(&key));
                Value::clone(&*found.ok_or_else(|| Error::NotFound(key.kind, key.name.clone()))?)
            }
            Method::PUT => {
                let object = body(request).await?;
                self.change(|tx, context| verbs::replace(tx, context, &key, part, object))?
            }
            Method::PATCH => {
                let media = text_header(request.headers(), &header::CONTENT_TYPE).to_owned();
                let patch = body(request).await?;
                self.change(|tx, context| patch_with(tx, context, &key, part, &media, patch))?
            }
            Method::DELETE => {
                let options = body(request).await?;
                let how = Deletion {
                    grace: query
                        .number("gracePeriodSeconds")?
                        .or_else(|| options.get("gracePeriodSeconds").and_then(Value::as_u64)),
                    uid: Some(object::text(&options, "/preconditions/uid").to_owned())
                        .filter(|uid| !uid.is_empty()),
                };
                self.change(|tx, context| verbs::delete(tx, context, &key, &how))?
            }
            _ => {
                return Err(Error::Method(request.method().to_string(), request.uri().path().to_owned()));
            }
        };
        Ok(json_response(StatusCode::OK, &shape.of(&outcome)))
    }

    fn list_or_watch(
        &self,
        kind: &'static Kind,
        namespace: Option<String>,
        query: &Query,
        headers: &HeaderMap,
    ) -> Result<Response<Body>, Error> {
        let selector = Selector::parse(query.get("labelSelector"), query.get("fieldSelector"))?;
        let shape = Shape::asked(text_header(headers, &header::ACCEPT));
        let wanted = Wanted { kind, namespace, selector, shape };
        if query.is("watch") {
            let cursor = Cursor::begin(&self.store, wanted, query)?;
            let stream = cursor.into_stream(Arc::clone(&self.store), query.number("timeoutSeconds")?);
            return Ok(response(StatusCode::OK, StreamBody::new(stream).boxed_unsync()));
        }
        let (objects, revision) = self.store.transaction(|tx| (tx.list(kind, None), tx.revision()));
        let items = objects.iter().map(|object| &**object).filter(|object| wanted.matches(object));
        Ok(json_response(StatusCode::OK, &shape.list(kind, revision, items)))
    }

    fn delete_collection(
        &self,
        kind: &'static Kind,
        namespace: Option<String>,
        query: &Query,
    ) -> Result<Response<Body>, Error> {
        let selector = Selector::parse(query.get("labelSelector"), query.get("fieldSelector"))?;
        let how = Deletion { grace: query.number("gracePeriodSeconds")?, uid: None };
        let wanted = Wanted { kind, namespace, selector, shape: Shape::Full };
        self.change(|tx, context| {
            for object in tx.list(kind, None).iter().filter(|object| wanted.matches(object)) {
                verbs::delete(tx, context, &key_of(kind, object), &how)?;
            }
            Ok(())
        })?;
        Ok(json_response(StatusCode::OK, &json!({"kind": "Status", "apiVersion": "v1", "status": "Success"})))
    }

    /// A request with the admin token, or a service account's token made for this server, may do everything.
    fn authenticate(&self, headers: &HeaderMap) -> Result<User, Error> {
        let given = text_header(headers, &header::AUTHORIZATION);
        let Some(token) = given.strip_prefix("Bearer ") else {
            return Err(Error::Unauthorized("no bearer token".to_owned()));
        };
        if token == self.admin_token {
            let info = json!({"username": "admin", "groups": ["system:masters", "system:authenticated"]});
            return Ok(User { info, audiences: Vec::new() });
        }
        let audiences = [API_AUDIENCE.to_owned()];
        let review = |tx: &mut Tx<'_>| self.issuer.review(tx, token, &audiences, SystemTime::now());
        self.store.transaction(review).map_err(Error::Unauthorized)
    }

    fn review(&self, mut review: Value) -> Value {
        let mut audiences: Vec<String> =
            object::texts(&review, "/spec/audiences").map(str::to_owned).collect();
        if audiences.is_empty() {
            audiences.push(API_AUDIENCE.to_owned());
        }
        let token = object::text(&review, "/spec/token");
        let now = SystemTime::now();
        let outcome = self.store.transaction(|tx| self.issuer.review(tx, token, &audiences, now));
        review["apiVersion"] = "authentication.k8s.io/v1".into();
        review["kind"] = "TokenReview".into();
        review["status"] = match outcome {
            Ok(user) => {
                json!({"authenticated": true, "user": user.info, "audiences": user.audiences})
            }
            Err(error) => json!({"authenticated": false, "error": error, "user": {}}),
        };
        review
    }
}

/// A patch by its media type; a server-side apply creates what is not there.
fn patch_with(
    tx: &mut Tx<'_>,
    context: &Context<'_>,
    key: &Key,
    part: Part,
    media: &str,
    patch: Value,
) -> Result<Value, Error> {
    match media.split(';').next().unwrap_or_default().trim() {
        "application/apply-patch+yaml" if tx.get(key).is_none() && part == Part::Main => {
            let namespace = Some(key.namespace.as_str()).filter(|_| key.kind.namespaced);
            verbs::create(tx, context, key.kind, namespace, patch)
        }
        "application/merge-patch+json"
        | "application/strategic-merge-patch+json"
        | "application/apply-patch+yaml" => verbs::patch(tx, context, key, part, &patch),
        other => Err(Error::MediaType(other.to_owned())),
    }
}

/// A request's JSON (or YAML) body; an empty one is an empty object.
async fn body(request: Request<Incoming>) -> Result<Value, Error> {
    let is_yaml = text_header(request.headers(), &header::CONTENT_TYPE).contains("yaml");
    let collected = Limited::new(request.into_body(), BODY).collect().await;
    let bytes = collected.map_err(|error| Error::BadRequest(format!("body: {error}")))?.to_bytes();
    if bytes.is_empty() {
        return Ok(json!({}));
    }
    if is_yaml {
        return yaml_serde::from_slice(&bytes).map_err(|error| Error::BadRequest(format!("body: {error}")));
    }
    serde_json::from_slice(&bytes).map_err(|error| Error::BadRequest(format!("body: {error}")))
}

fn text_header<'a>(headers: &'a HeaderMap, name: &header::HeaderName) -> &'a str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

fn json_response(status: StatusCode, value: &Value) -> Response<Body> {
    response(status, Full::new(Bytes::from(value.to_string())).boxed_unsync())
}

fn text_response(text: &'static str) -> Response<Body> {
    Response::new(Full::new(Bytes::from_static(text.as_bytes())).boxed_unsync())
}

fn response(status: StatusCode, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let json = header::HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}

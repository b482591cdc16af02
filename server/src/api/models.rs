//! `/v1/models`, and which names are the loaded model's.

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http_body_util::{BodyExt as _, Full};
use serde::Serialize;

use super::fields::Fields;
use super::flavour::Flavour;
use super::flavours::openrouter;
use crate::error::ApiError;
use crate::state::{RequestContext, Response};

/// Suffixes by which OpenRouter's clients choose a provider; they choose nothing here.
const ROUTING_SUFFIXES: [&str; 4] = [":free", ":nitro", ":floor", ":exacto"];

/// Names that the one loaded model answers to.
#[derive(Clone, Debug, Default)]
pub struct ModelNames {
    /// The operator's names first, then the family's; each once.
    pub ids: Vec<String>,
    /// `owned_by`.
    pub owned_by: String,
    /// `description`, where there is something to say: the demo says that it is one.
    pub description: Option<String>,
    /// Unix seconds.
    pub created: u64,
}

#[derive(Serialize)]
struct List<'a> {
    object: &'static str,
    data: Vec<Model<'a>>,
}

#[derive(Serialize)]
struct Model<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    owned_by: &'a str,
    max_model_len: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<&'a str>,
}

/// Without the suffix that chooses nothing.
pub(crate) fn bare(id: &str) -> &str {
    ROUTING_SUFFIXES
        .iter()
        .find_map(|suffix| id.strip_suffix(suffix))
        .unwrap_or(id)
}

impl ModelNames {
    /// Whether `id` is the loaded model.
    pub fn contains(&self, id: &str) -> bool {
        let bare = bare(id);
        self.ids.iter().any(|known| known == id || known == bare)
    }

    /// The `model` of a request: 400 if missing, 404 if another's.
    pub fn requested(&self, fields: &Fields<'_>) -> Result<String, ApiError> {
        match fields.string("model")? {
            None | Some("") => Err(fields.missing("model")),
            Some(id) if self.contains(id) => Ok(id.to_owned()),
            Some(id) => Err(not_found(id)),
        }
    }
}

/// All names.
pub fn list(ctx: &RequestContext) -> Result<Response, ApiError> {
    if ctx.flavour == Flavour::OpenRouter {
        return Ok(openrouter::list(ctx));
    }
    let list = List {
        object: "list",
        data: visible(ctx).map(|id| describe(ctx, id)).collect(),
    };
    Ok(json(&list))
}

/// One name; `id` is percent-decoded and may hold slashes.
pub fn get(ctx: &RequestContext, id: &str) -> Result<Response, ApiError> {
    if ctx.state.models.contains(id) && ctx.tenant.may_use(id) {
        Ok(json(&describe(ctx, id)))
    } else {
        Err(not_found(id))
    }
}

/// Names that the request's key may use.
pub(super) fn visible(ctx: &RequestContext) -> impl Iterator<Item = &String> {
    let ids = ctx.state.models.ids.iter();
    ids.filter(|id| ctx.tenant.may_use(id))
}

fn describe<'a>(ctx: &'a RequestContext, id: &'a str) -> Model<'a> {
    let names = &ctx.state.models;
    Model {
        id,
        object: "model",
        created: names.created,
        owned_by: &names.owned_by,
        max_model_len: ctx.state.info.max_model_len,
        description: names.description.as_deref(),
    }
}

fn not_found(id: &str) -> ApiError {
    let shown: String = id.chars().take(100).collect();
    ApiError {
        param: Some("model".into()),
        ..ApiError::new(
            http::StatusCode::NOT_FOUND,
            "invalid_request_error",
            "model_not_found",
            format!("the model '{shown}' does not exist here; see /v1/models"),
        )
    }
}

/// 200 with a JSON body.
pub(super) fn json<T: Serialize>(body: &T) -> Response {
    json_text(serde_json::to_vec(body).expect("our own types are JSON"))
}

/// 200 with a body that is JSON already.
pub(super) fn json_text(text: Vec<u8>) -> Response {
    let mut response = http::Response::new(Full::new(Bytes::from(text)).boxed_unsync());
    let json = http::HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    response
}

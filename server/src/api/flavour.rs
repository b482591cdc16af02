//! Whose manners a route has.

/// One API that clients of this model know. All of them map to chat and back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Flavour {
    /// `/v1`.
    #[default]
    OpenAi,
    /// `/v1/messages`.
    Anthropic,
    /// `/v1/openai`.
    DeepInfra,
    /// `/api/v1`.
    OpenRouter,
    /// `/ai/run`: what a binding returns.
    Cloudflare,
    /// `/client/v4`: the same in an envelope.
    CloudflareRest,
    /// `/nvidia/v1`, or everywhere under `--defaults nvidia`.
    Nvidia,
}

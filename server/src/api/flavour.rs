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

impl Flavour {
    /// Of a path that no route has: its neighbours' clients read the error.
    pub fn of_unknown(path: &str) -> Self {
        [
            ("/api/v1/", Self::OpenRouter),
            ("/ai/run/", Self::Cloudflare),
            ("/client/v4/", Self::CloudflareRest),
            ("/v1/openai/", Self::DeepInfra),
            ("/v1/messages/", Self::Anthropic),
            ("/nvidia/v1/", Self::Nvidia),
        ]
        .into_iter()
        .find_map(|(prefix, flavour)| path.starts_with(prefix).then_some(flavour))
        .unwrap_or_default()
    }

    /// Streams end with usage, asked for or not.
    pub fn always_counts(self) -> bool {
        self == Self::OpenRouter
    }
}

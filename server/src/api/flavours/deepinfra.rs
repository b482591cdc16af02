//! DeepInfra: OpenAI's API with a price in `usage.estimated_cost`.

use crate::api::prices::Price;

/// Published: 0.10, 0.50 and 0.04 USD per million tokens.
pub const PRICE: Price = Price::per_million(100_000, 500_000, 40_000);

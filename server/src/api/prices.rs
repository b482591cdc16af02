//! What tokens cost. Whole numbers all the way, so that a bill adds up and its digits are clean.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

use super::flavour::Flavour;
use super::flavours::{cloudflare, deepinfra, openrouter};
use super::types::Usage;

/// US dollars, in trillionths: a millionth of a dollar per million tokens is one of them a token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Usd(u128);

/// What one token costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Price {
    /// A prompt token that was computed.
    pub input: Usd,
    /// A sampled token.
    pub output: Usd,
    /// A prompt token that needed no computing.
    pub cached: Usd,
}

/// What a request costs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// For its prompt.
    pub prompt: Usd,
    /// For what was sampled.
    pub completion: Usd,
}

/// Where a flavour shows what a request costs, inside `usage`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CostField {
    /// `estimated_cost`.
    Estimated(Cost),
    /// `cost` and `cost_details`.
    Detailed(Cost),
}

/// The operator's prices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prices {
    /// Of the Cloudflare routes.
    pub cloudflare: Price,
    /// Of the OpenRouter routes.
    pub openrouter: Price,
    /// Of the DeepInfra routes.
    pub deepinfra: Price,
}

impl Default for Prices {
    fn default() -> Self {
        Self {
            cloudflare: cloudflare::PRICE,
            openrouter: openrouter::PRICE,
            deepinfra: deepinfra::PRICE,
        }
    }
}

impl Prices {
    /// What a request costs on a route of `flavour`; the others have no prices.
    pub fn cost(&self, flavour: Flavour, usage: &Usage) -> Option<Cost> {
        let price = match flavour {
            Flavour::Cloudflare | Flavour::CloudflareRest => &self.cloudflare,
            Flavour::OpenRouter => &self.openrouter,
            Flavour::DeepInfra => &self.deepinfra,
            Flavour::OpenAi | Flavour::Anthropic | Flavour::Nvidia => return None,
        };
        Some(price.cost(usage))
    }

    /// What `usage` shows of it.
    pub fn field(&self, flavour: Flavour, usage: &Usage) -> Option<CostField> {
        let cost = self.cost(flavour, usage)?;
        match flavour {
            Flavour::DeepInfra => Some(CostField::Estimated(cost)),
            Flavour::OpenRouter => Some(CostField::Detailed(cost)),
            _ => None,
        }
    }
}

impl Price {
    /// From millionths of a dollar per million tokens.
    pub const fn per_million(input: u32, output: u32, cached: u32) -> Self {
        Self {
            input: Usd(input as u128),
            output: Usd(output as u128),
            cached: Usd(cached as u128),
        }
    }

    /// (prompt - cached) · input + cached · cached price + completion · output
    pub fn cost(&self, usage: &Usage) -> Cost {
        let times = |count: u64, price: Usd| Usd(u128::from(count) * price.0);
        let computed = times(usage.prompt - usage.cached, self.input);
        let cached = times(usage.cached, self.cached);
        Cost {
            prompt: Usd(computed.0 + cached.0),
            completion: times(usage.completion, self.output),
        }
    }
}

impl Cost {
    /// All of it.
    pub fn total(&self) -> Usd {
        Usd(self.prompt.0 + self.completion.0)
    }
}

/// Dollars per million tokens: `IN,OUT,CACHED`.
impl FromStr for Price {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let fail = || {
            format!(
                "{text:?} is no price: three numbers IN,OUT,CACHED in USD per million tokens are, \
                 each 0 to 999999 with at most six decimals, such as 0.10,0.50,0.04"
            )
        };
        let numbers: Option<Vec<Usd>> = text.split(',').map(|n| micros(n.trim())).collect();
        match numbers.as_deref() {
            Some(&[input, output, cached]) => Ok(Self {
                input,
                output,
                cached,
            }),
            _ => Err(fail()),
        }
    }
}

/// A decimal number as millionths.
fn micros(text: &str) -> Option<Usd> {
    let (whole, decimals) = text.split_once('.').unwrap_or((text, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || whole.len() > 6 || decimals.len() > 6 {
        return None;
    }
    if !digits(whole) || !digits(decimals) || text.ends_with('.') {
        return None;
    }
    format!("{whole}{decimals:0<6}").parse().ok().map(Usd)
}

/// A plain decimal number without an exponent or trailing zeros.
impl fmt::Display for Usd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const ONE: u128 = 1_000_000_000_000;
        let decimals = format!("{:012}", self.0 % ONE);
        let decimals = decimals.trim_end_matches('0');
        write!(f, "{}", self.0 / ONE)?;
        if decimals.is_empty() {
            return Ok(());
        }
        write!(f, ".{decimals}")
    }
}

/// The number whose shortest form is exactly these digits.
impl Serialize for Usd {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let number: f64 = self.to_string().parse().expect("digits and a point");
        serializer.serialize_f64(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(prompt: u64, cached: u64, completion: u64) -> Usage {
        Usage {
            prompt,
            cached,
            completion,
            ..Usage::default()
        }
    }

    #[test]
    fn costs_have_clean_digits() {
        let check = |price: &str, counts: Usage, expect: &str| {
            let cost = price.parse::<Price>().unwrap().cost(&counts).total();
            assert_eq!(cost.to_string(), expect);
            let number: f64 = serde_json::to_string(&cost).unwrap().parse().unwrap();
            assert_eq!(number, expect.parse::<f64>().unwrap());
        };
        check("0.10,0.50,0.04", usage(3, 0, 0), "0.0000003");
        check("0.10,0.50,0.04", usage(3, 2, 1), "0.00000068");
        check("0.09,0.45,0.09", usage(7, 0, 3), "0.00000198");
        check("0.5,1.5,0.5", usage(1_000_000, 1_000_000, 2_000_000), "3.5");
        check("0,0,0", usage(5, 1, 9), "0");
        check("0.000001,0,0", usage(1, 0, 0), "0.000000000001");
        check(
            "999999.999999,0,0",
            usage(1 << 40, 0, 0),
            "1099511627774.900488372224",
        );
        let text = serde_json::to_string(&usage_cost("0.10,0.50,0.04", 12, 34)).unwrap();
        assert_eq!(text, "0.0000182");
    }

    fn usage_cost(price: &str, prompt: u64, completion: u64) -> Usd {
        let price: Price = price.parse().unwrap();
        price.cost(&usage(prompt, 0, completion)).total()
    }

    #[test]
    fn defaults_are_written_as_an_operator_would() {
        let prices = Prices::default();
        for (price, text) in [
            (prices.cloudflare, "0.50,1.50,0.50"),
            (prices.openrouter, "0.09,0.45,0.09"),
            (prices.deepinfra, "0.10,0.50,0.04"),
        ] {
            assert_eq!(text.parse(), Ok(price));
        }
    }

    #[test]
    fn other_texts_are_no_prices() {
        for text in [
            "",
            "1",
            "1,2",
            "1,2,3,4",
            "a,2,3",
            "-1,2,3",
            "1.,2,3",
            ".5,2,3",
            "1e3,2,3",
            "0.0000001,2,3",
            "1000000,2,3",
            "1,,3",
            "+1,2,3",
        ] {
            assert!(text.parse::<Price>().is_err(), "{text}");
        }
    }
}

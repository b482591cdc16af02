// What a Worker's `env.AI` is outside of Cloudflare: the same call over HTTP.

export class Ai {
  constructor(url, key) {
    this.url = url;
    this.key = key;
  }

  // A stream when the inputs ask for one, else the result.
  async run(model, inputs) {
    const response = await fetch(`${this.url}/ai/run/${model}`, {
      method: "POST",
      headers: { authorization: `Bearer ${this.key}` },
      body: JSON.stringify(inputs),
    });
    if (!response.ok) {
      const [error] = (await response.json()).errors;
      throw new Error(`${error.code}: ${error.message}`);
    }
    return inputs.stream ? response.body : response.json();
  }
}

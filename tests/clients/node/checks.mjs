// What the checks of all Node clients share: a line per check, exit 1 on failure.
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';

export { assert };
export const MODEL = 'nvidia/nemotron-3-super-120b-a12b';
export const COUNTED = 'One, two, three, four, five. Ünïcödé 🦀 too.';
// The daemon with its demo model, and the server that follows ../script.json.
export const [demo, scripted] = process.argv.slice(2).map((url) => url.replace(/\/$/, ''));

const checks = [];
export const check = (name, run) => checks.push({ name, run });

export function version(name) {
  const path = new URL(`./node_modules/${name}/package.json`, import.meta.url);
  return JSON.parse(readFileSync(path)).version;
}

// Runs every check, whatever the others met.
export async function run(client) {
  let failed = 0;
  for (const { name, run } of checks) {
    try {
      await run();
      console.log(`ok     ${client}: ${name}`);
    } catch (error) {
      failed += 1;
      console.log(`FAILED ${client}: ${name}`);
      console.log(error);
    }
  }
  process.exitCode = failed ? 1 : 0;
}

// A line per check.

let failed = 0;

export async function check(name, body) {
  try {
    await body();
    console.log(`ok     ${name}`);
  } catch (error) {
    failed += 1;
    console.log(`FAILED ${name}`);
    console.log(error);
  }
}

export function finish() {
  process.exit(failed ? 1 : 0);
}

// The formats of JSON Schema that are enforced, as patterns: RFC 3339 (dates), 5321 (email, without quoted names), 1123 (hostname), 2673
// and 4291 (addresses), 3986 (URIs), 4122 (UUID), 6901 (pointers). Where a format has a form that nobody writes, it is left out.

const YEAR = String.raw`\d{4}`;
const DATE =
  String.raw`(?:${YEAR}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\d|3[01])|(?:0[469]|11)-(?:0[1-9]|[12]\d|30)|02-(?:0[1-9]|1\d|2[0-8]))` +
  String.raw`|(?:\d\d(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)-02-29)`;
const HOURS = String.raw`(?:[01]\d|2[0-3])`;
const TIME = String.raw`${HOURS}:[0-5]\d:[0-5]\d(?:\.\d{1,9})?(?:[Zz]|[+-]${HOURS}:[0-5]\d)`;

const DURATION_DATE = String.raw`(?:\d+Y(?:\d+M(?:\d+D)?)?|\d+M(?:\d+D)?|\d+D)`;
const DURATION_TIME = String.raw`T(?:\d+H(?:\d+M(?:\d+S)?)?|\d+M(?:\d+S)?|\d+S)`;

const ATOM = "[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+";
const LABEL = '[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?';
const SHORT_LABEL = '[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?';

const BYTE = String.raw`(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)`;
const IPV4 = String.raw`(?:${BYTE}\.){3}${BYTE}`;
const GROUP = '[0-9A-Fa-f]{1,4}';
const LAST_GROUPS = `(?:${GROUP}:${GROUP}|${IPV4})`;
// So many groups before ::, so many after it.
const IPV6 = `(?:${[
  `(?:${GROUP}:){6}${LAST_GROUPS}`,
  `::(?:${GROUP}:){5}${LAST_GROUPS}`,
  `(?:${GROUP})?::(?:${GROUP}:){4}${LAST_GROUPS}`,
  `(?:(?:${GROUP}:){0,1}${GROUP})?::(?:${GROUP}:){3}${LAST_GROUPS}`,
  `(?:(?:${GROUP}:){0,2}${GROUP})?::(?:${GROUP}:){2}${LAST_GROUPS}`,
  `(?:(?:${GROUP}:){0,3}${GROUP})?::${GROUP}:${LAST_GROUPS}`,
  `(?:(?:${GROUP}:){0,4}${GROUP})?::${LAST_GROUPS}`,
  `(?:(?:${GROUP}:){0,5}${GROUP})?::${GROUP}`,
  `(?:(?:${GROUP}:){0,6}${GROUP})?::`,
].join('|')})`;

const ENCODED = '%[0-9A-Fa-f]{2}';
const SEGMENT = `(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|${ENCODED})`;
const NAME = `(?:[A-Za-z0-9._~!$&'()*+,;=-]|${ENCODED})`;
const AUTHORITY = String.raw`(?:(?:${NAME}|:)*@)?(?:\[${IPV6}\]|${NAME}*)(?::\d*)?`;
const BEHIND_PATH = String.raw`(?:\?(?:${SEGMENT}|[/?])*)?(?:#(?:${SEGMENT}|[/?])*)?`;
const ABSOLUTE = `/(?:${SEGMENT}+(?:/${SEGMENT}*)*)?`;
const URI = `[A-Za-z][A-Za-z0-9+.-]*:(?://${AUTHORITY}(?:/${SEGMENT}*)*|${ABSOLUTE}|${SEGMENT}+(?:/${SEGMENT}*)*)?${BEHIND_PATH}`;
const RELATIVE = `(?://${AUTHORITY}(?:/${SEGMENT}*)*|${ABSOLUTE}|(?:${NAME}|@)+(?:/${SEGMENT}*)*)?${BEHIND_PATH}`;

const POINTER = '(?:/(?:[^~/]|~[01])*)*';

/** By name; a format that is not here is an annotation, as JSON Schema has it. */
export const FORMATS: ReadonlyMap<string, string> = new Map(
  Object.entries({
    date: DATE,
    time: TIME,
    'date-time': `${DATE}[Tt]${TIME}`,
    duration: String.raw`P(?:\d+W|${DURATION_DATE}(?:${DURATION_TIME})?|${DURATION_TIME})`,
    email: String.raw`${ATOM}(?:\.${ATOM})*@${LABEL}(?:\.${LABEL})+`,
    hostname: String.raw`(?=.{1,253}$)${SHORT_LABEL}(?:\.${SHORT_LABEL})*`,
    ipv4: IPV4,
    ipv6: IPV6,
    uri: URI,
    'uri-reference': `(?:${URI}|${RELATIVE})`,
    uuid: '[0-9A-Fa-f]{8}-(?:[0-9A-Fa-f]{4}-){3}[0-9A-Fa-f]{12}',
    'json-pointer': POINTER,
    'relative-json-pointer': String.raw`(?:0|[1-9]\d*)(?:#|${POINTER})`,
    byte: '(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?',
  }).map(([name, pattern]) => [name, `^(?:${pattern})$`]),
);

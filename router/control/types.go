package control

import (
	"context"
	"encoding/json"
	"net/netip"
	"time"
)

// Backend is what the control API needs of the router. Methods may be called concurrently.
// Errors that are *Error reach the client as they are; every other error becomes code
// "internal" with its text as the detail. ctx ends when the client goes away or the time limit
// of the request is over.
type Backend interface {
	Status(ctx context.Context) (*Status, error)
	Connections(ctx context.Context) ([]Connection, error)
	// Up starts a connection and waits until it is up, has failed, or ctx ends (then the state
	// reached so far is returned without an error).
	Up(ctx context.Context, name string) (*Connection, error)
	// Down ends a connection; an idle one stays idle without an error.
	Down(ctx context.Context, name string) (*Connection, error)
	Explain(ctx context.Context, flow Flow) (*Explanation, error)
	// PolicyCheck does all that PolicyInstall does, except installing.
	PolicyCheck(ctx context.Context, jws []byte) (*PolicyReport, error)
	PolicyInstall(ctx context.Context, jws []byte) (*PolicyReport, error)
	// AuditTail returns the last n records, oldest first.
	AuditTail(ctx context.Context, n int) ([]AuditRecord, error)
	// Join takes the router to certificates and a policy of the service provider's centre, tells each
	// step, and waits for the first connection. It can be repeated at any time.
	Join(ctx context.Context, req JoinRequest, step func(JoinStep)) error
	Counters(ctx context.Context) (*Counters, error)
	// Redirect sends partners that connected to us to another of our addresses.
	Redirect(ctx context.Context, req RedirectRequest) (*RedirectReport, error)
	// PPKs lists the postquantum preshared keys that are there, and those that the policy wants.
	PPKs(ctx context.Context) ([]PPK, error)
	// PPKAdd stores one, written in base64. One of that ID that is there already is kept, and it is an
	// error, unless replace is set.
	PPKAdd(ctx context.Context, id string, secret []byte, replace bool) (*PPK, error)
	PPKRemove(ctx context.Context, id string) (*PPK, error)
	// Reload does what SIGHUP does: reads policy file, CRLs and token again.
	Reload(ctx context.Context) error
	// Health returns nil when the daemon does its work.
	Health(ctx context.Context) error
}

// Status is the state of the whole router.
type Status struct {
	Facility string       `json:"facility,omitempty"` // facility's name where the policy gives one
	DeviceID string       `json:"device_id"`
	Version  string       `json:"version"`
	Now      time.Time    `json:"now"`
	Started  time.Time    `json:"started"`
	Policy   PolicyStatus `json:"policy"`
	Token    TokenStatus  `json:"token"`
	// Centre is how the router stands with the service provider's centre; nil: none is configured.
	Centre      *CentreStatus `json:"centre,omitempty"`
	Connections []Connection  `json:"connections"`
	Traffic     Traffic       `json:"traffic"`
	// Refused counts refusals by reason, whole daemon: policy decisions and kernel rules.
	Refused []Refused `json:"refused,omitempty"`
	// Events are the latest noteworthy events, newest first.
	Events   []AuditRecord `json:"events,omitempty"`
	Warnings []Warning     `json:"warnings,omitempty"`
}

// Warning is something that the operator should know or do.
type Warning struct {
	Code  string `json:"code"`           // stable, such as "cert-expires-soon"
	Title string `json:"title"`          // one line
	Text  string `json:"text,omitempty"` // what it means
	Hint  string `json:"hint,omitempty"` // what to do
}

// PolicyStatus describes the policy in force.
type PolicyStatus struct {
	Installed   bool      `json:"installed"`
	Issuer      string    `json:"issuer,omitempty"`
	Serial      uint64    `json:"serial,omitempty"`
	NotBefore   time.Time `json:"not_before,omitzero"`
	NotAfter    time.Time `json:"not_after,omitzero"`
	InstalledAt time.Time `json:"installed_at,omitzero"`
	// Error says why there is no valid policy.
	Error *Error `json:"error,omitempty"`
}

// CentreStatus is how the router stands with the service provider's centre.
type CentreStatus struct {
	URL     string    `json:"url,omitempty"`    // empty: not joined yet
	Heard   time.Time `json:"heard,omitzero"`   // its last answer
	Renewal time.Time `json:"renewal,omitzero"` // when the next service certificate is renewed
}

// JoinRequest asks the router to join the service provider's centre.
type JoinRequest struct {
	URL  string `json:"url,omitempty"`  // https://HOST[:PORT]; empty: the configured one, or the last
	Wait string `json:"wait,omitempty"` // duration, at most 5m: how long to wait for the first connection; empty: 0s
}

// JoinStep is one step of joining.
type JoinStep struct {
	Name    string `json:"name"` // stable: one of the Step… constants
	Service string `json:"service,omitempty"`
	Text    string `json:"text,omitempty"`
	Error   *Error `json:"error,omitempty"` // nil: it worked
}

// Steps of joining, in the order in which they are done.
const (
	StepDevice     = "device-certificate"
	StepReach      = "reachability"
	StepClock      = "clock"
	StepPolicy     = "policy"
	StepServiceKey = "service-key" // of a service that has none yet
	StepEnrolment  = "enrolment"   // of each service
	StepReport     = "report"      // the centre is told
	StepConnection = "connection"  // the first one is up; an error here does not make joining fail
)

// Token states.
const (
	TokenReady      = "ready"
	TokenStarting   = "starting"
	TokenRemoved    = "removed"
	TokenPINRefused = "pin-refused"
	TokenFailed     = "failed"
)

// TokenStatus describes the token and what is on it.
type TokenStatus struct {
	State        string        `json:"state"` // one of the Token… constants
	Label        string        `json:"label,omitempty"`
	Error        *Error        `json:"error,omitempty"`
	Certificates []Certificate `json:"certificates,omitempty"`
}

// Certificate is a certificate on the token.
type Certificate struct {
	Layer     int       `json:"layer"`             // 1 device, 2 service
	Service   string    `json:"service,omitempty"` // layer 2
	Subject   string    `json:"subject"`
	Issuer    string    `json:"issuer"`
	NotBefore time.Time `json:"not_before"`
	NotAfter  time.Time `json:"not_after"`
	Error     string    `json:"error,omitempty"` // why it cannot be used
}

// Connection states.
const (
	ConnIdle       = "idle"
	ConnConnecting = "connecting"
	ConnUp         = "up"
	ConnClosing    = "closing"
	ConnFailed     = "failed" // the last attempt failed; tried again on demand or with Up
)

// Connection is one connection of the policy.
type Connection struct {
	Name        string    `json:"name"`
	Peer        string    `json:"peer"`
	Service     string    `json:"service"`
	Start       string    `json:"start"` // on-demand, manual, always
	State       string    `json:"state"` // one of the Conn… constants
	Since       time.Time `json:"since,omitzero"`
	Local       []string  `json:"local,omitempty"`
	Remote      []string  `json:"remote,omitempty"`
	Gateway     string    `json:"gateway,omitempty"`    // address and port in use
	RemoteIDs   []string  `json:"remote_ids,omitempty"` // authenticated identities, in order of the rounds
	Suite       string    `json:"suite,omitempty"`      // of IKE
	ESPSuite    string    `json:"esp_suite,omitempty"`
	PPK         string    `json:"ppk,omitempty"`   // ID of the postquantum preshared key in its keys
	Encap       bool      `json:"encap,omitempty"` // ESP in UDP
	TCP         bool      `json:"tcp,omitempty"`   // ESP and IKE in TCP (RFC 9329)
	LocalAddr   string    `json:"local_addr,omitempty"`
	IKESA       uint64    `json:"ike_sa,omitempty"`   // number of the IKE SA, in this run of the daemon
	ProvedAt    time.Time `json:"proved_at,omitzero"` // when both ends last proved who they are, in full
	Traffic     Traffic   `json:"traffic"`
	HeldPackets int       `json:"held_packets,omitempty"`
	IdleAfter   string    `json:"idle_after,omitempty"` // duration
	SetupTime   string    `json:"setup_time,omitempty"` // duration of the last set-up
	LastTraffic time.Time `json:"last_traffic,omitzero"`
	LastError   *Error    `json:"last_error,omitempty"`
	LastErrorAt time.Time `json:"last_error_at,omitzero"`
	PathMTU     int       `json:"path_mtu,omitempty"`  // of the way to the peer, outer IP packets, octets
	InnerMTU    int       `json:"inner_mtu,omitempty"` // longest packet that the tunnel carries in one piece
	SAs         []SA      `json:"sas,omitempty"`
}

// SA is one CHILD SA of a connection: an ESP SA in each direction.
type SA struct {
	SPIIn   uint32    `json:"spi_in"`
	SPIOut  uint32    `json:"spi_out"`
	Queue   int       `json:"queue,omitempty"` // RFC 9611: one of several for the same addresses
	Sending bool      `json:"sending"`         // packets go out on it
	In      SATraffic `json:"in"`
	Out     SATraffic `json:"out"`
}

// SATraffic counts one direction of an SA from its start.
type SATraffic struct {
	Packets   uint64 `json:"packets"`
	Bytes     uint64 `json:"bytes"`    // of inner packets
	Sequence  uint64 `json:"sequence"` // last sent, or highest received
	Replay    uint64 `json:"replay,omitempty"`
	Auth      uint64 `json:"auth,omitempty"` // not authentic
	Malformed uint64 `json:"malformed,omitempty"`
	Dummy     uint64 `json:"dummy,omitempty"` // not a failure
	Exhausted uint64 `json:"exhausted,omitempty"`
}

// Queue is what the workers of one queue did.
type Queue struct {
	Queue      int               `json:"queue"`
	PacketsIn  uint64            `json:"packets_in"` // inner packets
	BytesIn    uint64            `json:"bytes_in"`
	PacketsOut uint64            `json:"packets_out"`
	BytesOut   uint64            `json:"bytes_out"`
	Rounds     uint64            `json:"rounds"` // times that a worker took what was there: packets / rounds is the batch
	Dropped    map[string]uint64 `json:"dropped,omitempty"`
}

// Traffic counts inner packets.
type Traffic struct {
	PacketsIn  uint64 `json:"packets_in"` // from the peer
	BytesIn    uint64 `json:"bytes_in"`
	PacketsOut uint64 `json:"packets_out"`
	BytesOut   uint64 `json:"bytes_out"`
	DroppedIn  uint64 `json:"dropped_in,omitempty"` // all reasons
	DroppedOut uint64 `json:"dropped_out,omitempty"`
}

// Refused is a number of refusals of one kind.
type Refused struct {
	Where   string    `json:"where"` // "policy", "kernel", "esp", "ike"
	Reason  string    `json:"reason"`
	Text    string    `json:"text,omitempty"`
	Packets uint64    `json:"packets"`
	Bytes   uint64    `json:"bytes,omitempty"`
	Last    time.Time `json:"last,omitzero"`
	Example string    `json:"example,omitempty"` // the latest one, such as "tcp 10.2.1.9:4242 -> 10.3.1.7:104"
}

// RedirectRequest says where partners are to go.
type RedirectRequest struct {
	To          netip.Addr `json:"to"`                    // one of our addresses
	Connections []string   `json:"connections,omitempty"` // empty: all
}

// RedirectReport says who was sent there.
type RedirectReport struct {
	To          netip.Addr   `json:"to"`
	Connections []Redirected `json:"connections"`
}

// Redirected is one connection.
type Redirected struct {
	Name string `json:"name"`
	Told bool   `json:"told"`          // to go; it was up, and the partner had opened it
	Why  string `json:"why,omitempty"` // it was not told
}

// PPK is a postquantum preshared key (RFC 8784), without the key.
type PPK struct {
	ID          string    `json:"id"`
	Present     bool      `json:"present"`
	Check       string    `json:"check,omitempty"` // the same on both devices when the keys are
	Added       time.Time `json:"added,omitzero"`
	Connections []string  `json:"connections,omitempty"` // of the policy that use it
	Required    bool      `json:"required,omitempty"`    // one of them is not set up without it
	Error       *Error    `json:"error,omitempty"`       // it is there, and cannot be used
}

// Flow is a question for Explain.
type Flow struct {
	From     netip.Addr `json:"from"`
	To       netip.Addr `json:"to"`
	Protocol string     `json:"protocol"` // tcp, udp, icmp, icmpv6, any or a number
	FromPort uint16     `json:"from_port,omitempty"`
	ToPort   uint16     `json:"to_port,omitempty"` // ICMP: type<<8 | code
}

// Explanation answers it.
type Explanation struct {
	Flow       Flow     `json:"flow"`
	Allow      bool     `json:"allow"`
	Reason     string   `json:"reason"` // stable code
	Direction  string   `json:"direction,omitempty"`
	FromZone   string   `json:"from_zone,omitempty"`
	ToZone     string   `json:"to_zone,omitempty"`
	Connection string   `json:"connection,omitempty"`
	Rule       string   `json:"rule,omitempty"`
	State      string   `json:"state,omitempty"` // of the connection
	Text       []string `json:"text"`            // why, in sentences
}

// PolicyReport is the result of checking or installing a policy.
type PolicyReport struct {
	Issuer      string    `json:"issuer"`
	Device      string    `json:"device"`
	Serial      uint64    `json:"serial"`
	NotBefore   time.Time `json:"not_before"`
	NotAfter    time.Time `json:"not_after"`
	Connections int       `json:"connections"`
	Flows       int       `json:"flows"`
	Tests       int       `json:"tests"`
	Installed   bool      `json:"installed"` // false after PolicyCheck
	Added       []string  `json:"added,omitempty"`
	Removed     []string  `json:"removed,omitempty"`
	Changed     []string  `json:"changed,omitempty"`
	Warnings    []Warning `json:"warnings,omitempty"`
}

// AuditRecord is a record of the audit log, as package audit writes it.
type AuditRecord struct {
	Seq    uint64            `json:"seq,omitempty"`
	Time   time.Time         `json:"time"`
	Event  string            `json:"event"`
	Who    string            `json:"who,omitempty"`
	What   string            `json:"what,omitempty"`
	Where  string            `json:"where,omitempty"`
	Result string            `json:"result,omitempty"`
	Detail map[string]string `json:"detail,omitempty"`
	Raw    json.RawMessage   `json:"raw,omitempty"` // the line itself, where asked for
}

// Counters is everything counted, for machines.
type Counters struct {
	Traffic     Traffic            `json:"traffic"`
	Connections map[string]Traffic `json:"connections,omitempty"`
	Refused     []Refused          `json:"refused,omitempty"`
	Queues      []Queue            `json:"queues,omitempty"`
	// Other holds further counters by name.
	Other map[string]uint64 `json:"other,omitempty"`
}

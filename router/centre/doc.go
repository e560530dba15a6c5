// Package centre is the device's side of the SP's centre: it takes a token that has nothing but its
// device certificate to service certificates and a policy, and keeps both up to date, unattended.
//
// What it trusts comes from elsewhere. The centre's TLS certificate is judged by the anchors of the
// configuration alone. Which services the device belongs to, and by which anchors their
// certificates are judged, is told by the signed policy, which a [PolicySink] verifies. What the
// network offers beside (EST's cacerts) is used to complete chains and never as an anchor.
//
// There are two activities. One keeps a long poll for the policy (HTTP GET with Prefer: wait, RFC
// 7240, and If-None-Match) and tells the device's state before each. The other looks at each service:
//
//	        Generate            simpleenroll,            Store
//	                            simplereenroll
//	absent ──────────▶ keyed ───────────────────▶ issued ───────▶ in use
//	                     ▲                                          │
//	                     └────────────── Generate ──────────────────┘
//	                 two thirds of the life are over, it has expired,
//	                 or it is bound to another device certificate
//
// All connections are TLS 1.3. The policy is asked for, and the state told, by a service certificate
// once there is a valid one, so that the centre can end that on its own; by the device certificate
// before, and when the centre refuses the service certificate. Enrolment always goes by the device
// certificate: the request for a certificate is bound to the connection (RFC 7030, section 3.5, with the
// tls-exporter of RFC 9266) and carries the device key's proof (relatedCertRequest, RFC 9763).
//
// The power may fail at any instant. The token is the truth about keys and certificates, the sink
// about policies; the journal remembers what neither can know: which keys are ours to clean up, and a
// certificate that came and is not on the token yet. Whatever is written last survives; each
// step can be done again.
//
// The package knows neither the token's process nor the router: it declares what it needs of them.
package centre

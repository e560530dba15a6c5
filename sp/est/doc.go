// Package est is the enrolment server of the SP's centre: EST (RFC 7030, with the corrections of
// RFC 8951) for each VPN service, below /.well-known/est/{service}/: cacerts, csrattrs,
// simpleenroll and simplereenroll.
//
// Who asks is authenticated by TLS 1.3 with the device certificate; for renewals, the service
// certificate will do as well. The request proves three things besides: that its sender has the
// key that is to be certified (its own signature), that this key and the TLS connection are in the
// same hands (RFC 7030, section 3.5, with the tls-exporter of RFC 9266 in place of tls-unique, which
// TLS 1.3 does not have), and that the device's key took part (relatedCertRequest, RFC 9763).
// Clients that cannot do the latter two (curl, strongSwan) are served only by services that say so.
//
// Whether the device is a member, and by which names, is asked of a [Registry]; certificates come
// from a [CA], which is *issue.Service. Every refusal is an HTTP status with one line of text that
// says what was expected, what came and what to do, and a [Refusal] for the record.
package est

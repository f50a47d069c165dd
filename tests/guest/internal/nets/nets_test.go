package nets

import (
	"strings"
	"testing"

	"refguest/internal/conf"
)

const text = `
networks: {web: {egress: closed}, db: {egress: open}}
containers:
  - {name: api, networks: [web, db]}
  - {name: store, networks: [db]}
  - {name: alone}
`

func plan(t *testing.T) Plan {
	t.Helper()
	w, err := conf.ParseWorkload([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return Make(w)
}

func TestTheFirstContainerIsTheShimsUpstreamAtItsFixedAddress(t *testing.T) {
	links := plan(t).Links["api"]
	last := links[len(links)-1]
	if last.Network != conf.ShimNetwork || last.Address.String() != "172.31.255.2/30" || last.Gateway.String() != "172.31.255.1" {
		t.Errorf("%+v", last)
	}
	if links[0].Network != "db" {
		t.Error("the network with a way out is not the first")
	}
}

func TestWhoSharesANetworkKnowsTheOtherByName(t *testing.T) {
	p := plan(t)
	hosts := p.Hosts("store", "abc")
	if !strings.Contains(hosts, "172.30.0.2\tapi\n") || !strings.Contains(hosts, "172.30.0.3\tabc\n") {
		t.Error(hosts)
	}
	if alone := p.Hosts("alone", "abc"); strings.Contains(alone, "172.") || len(p.Links["alone"]) != 0 {
		t.Error(alone)
	}
}

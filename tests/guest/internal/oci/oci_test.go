package oci

import (
	"reflect"
	"testing"
	"time"

	"refguest/internal/conf"
)

const imageText = `{"architecture": "amd64", "config": {"User": "app", "Env": ["PATH=/app", "COLOUR=white"],
 "Entrypoint": ["/app/run"], "Cmd": ["serve"], "WorkingDir": "/srv",
 "Healthcheck": {"Test": ["CMD-SHELL", "ok"], "Interval": 2000000000, "Retries": 4}}}`

func image(t *testing.T) *Image {
	t.Helper()
	image, err := ParseImage([]byte(imageText))
	if err != nil {
		t.Fatal(err)
	}
	return image
}

func TestAnotherEntrypointGoesWithoutTheImagesCommand(t *testing.T) {
	for _, c := range []struct {
		config conf.Container
		want   []string
	}{
		{conf.Container{}, []string{"/app/run", "serve"}},
		{conf.Container{Command: []string{"test"}}, []string{"/app/run", "test"}},
		{conf.Container{Entrypoint: []string{"/sh"}}, []string{"/sh"}},
		{conf.Container{Entrypoint: []string{"/sh"}, Command: []string{"-c"}}, []string{"/sh", "-c"}},
	} {
		if got, err := image(t).Args(&c.config); err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%+v: %v, %v", c.config, got, err)
		}
	}
	if _, err := (&Image{}).Args(&conf.Container{}); err == nil {
		t.Error("nothing to run was accepted")
	}
}

func TestTheEnvironmentIsLaidOverTheImages(t *testing.T) {
	config := conf.Container{
		Env: []conf.EnvEntry{{Name: "COLOUR", Value: "red", Fixed: true}, {Name: "REGION"}, {Name: "ABSENT"},
			{Name: "GUEST_CONSOLE", Value: "1", Fixed: true}},
		Secrets: []string{"KEY", "EMPTY"},
	}
	ext := &conf.External{Env: map[string]string{"REGION": "north"}, Secrets: map[string]string{"KEY": "k=1", "EMPTY": "null"}}
	want := []string{"PATH=/app", "HOSTNAME=h", "HOME=/root", "COLOUR=red", "REGION=north", "KEY=k=1"}
	if got := image(t).Env(&config, ext, "h", "/root"); !reflect.DeepEqual(got, want) {
		t.Errorf("%v", got)
	}
}

func TestTheImagesCheckIsTakenUnlessAnotherIsDeclared(t *testing.T) {
	own := image(t).Check(&conf.Container{})
	if own == nil || own.Every() != 2*time.Second || own.Streak() != 4 {
		t.Fatalf("%+v", own)
	}
	if args, _ := CheckArgs(own); !reflect.DeepEqual(args, []string{"/bin/sh", "-c", "ok"}) {
		t.Errorf("%v", args)
	}
	none := conf.Container{Healthcheck: &conf.Healthcheck{Test: []string{"NONE"}}}
	if image(t).Check(&none) != nil {
		t.Error("a check that was declared away is there")
	}
	inherits := conf.Container{Healthcheck: &conf.Healthcheck{Retries: 9}}
	if got := image(t).Check(&inherits); got.Streak() != 9 || got.Test[1] != "ok" {
		t.Errorf("%+v", got)
	}
	if (&Image{}).Check(&conf.Container{}) != nil {
		t.Error("a check out of nothing")
	}
	if _, err := CheckArgs(&conf.Healthcheck{Test: []string{"ok"}}); err == nil {
		t.Error("a test without CMD was accepted")
	}
}

const passwd = "root:x:0:0:root:/root:/bin/sh\napp:x:10:20::/home/app:/bin/sh\n"
const group = "root:x:0:\nstaff:x:30:app,other\n"

func TestUsersAreFoundByNameAndNumber(t *testing.T) {
	for spec, want := range map[string]User{
		"":          {0, 0, nil, "/root"},
		"app":       {10, 20, []uint32{30}, "/home/app"},
		"10":        {10, 20, []uint32{30}, "/home/app"},
		"app:staff": {10, 30, nil, "/home/app"},
		"77":        {77, 0, nil, "/"},
		"77:88":     {77, 88, nil, "/"},
	} {
		got, err := FindUser(spec, passwd, group)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q: %+v, %v", spec, got, err)
		}
	}
	for _, spec := range []string{"nobody", "app:none"} {
		if _, err := FindUser(spec, passwd, group); err == nil {
			t.Errorf("%q: accepted", spec)
		}
	}
}

func TestOnlyThePublicGuestsCapabilitiesCanBeAdded(t *testing.T) {
	if _, err := Spec(&conf.Container{CapAdd: []string{"NET_BIND_SERVICE"}}, Place{}); err != nil {
		t.Error(err)
	}
	if _, err := Spec(&conf.Container{CapAdd: []string{"SYS_ADMIN"}}, Place{}); err == nil {
		t.Error("SYS_ADMIN was added")
	}
}

func TestTmpfsHasDockersOptionsUnlessTheyAreTurnedRound(t *testing.T) {
	for given, want := range map[string]string{
		"":                     "nosuid,nodev,noexec",
		"size=1m,exec":         "nosuid,nodev,size=1m,exec",
		"mode=1777,suid,nodev": "nodev,noexec,mode=1777,suid,nodev",
	} {
		if got := tmpfsOptions(given); got != want {
			t.Errorf("%q: %q", given, got)
		}
	}
}

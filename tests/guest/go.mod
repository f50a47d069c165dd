module refguest

go 1.19

require gopkg.in/yaml.v3 v3.0.1

require golang.org/x/crypto v0.24.0

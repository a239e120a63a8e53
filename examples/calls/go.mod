module gosandbox.example/calls

go 1.19

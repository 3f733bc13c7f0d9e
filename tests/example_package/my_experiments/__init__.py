"""A method, a network and a data set that live outside paper-runner.

Each is named by a YAML file in configs/, and the three are independent: any of them goes with what paper-runner has.

    pip install -e .                                      # or start in this folder: the package is found here too
    runner --config-dir configs method=confidence_penalty model=tiny_net dataset=stripes
    runner --config-dir configs method=confidence_penalty model=resnet20      # the method on another network
    runner --config-dir configs method=supervised model=tiny_net              # the network with another method
    runner --config-dir configs list methods confidence*
    runner --config-dir configs show confidence_penalty

RUNNER_CONFIG_PATH=configs saves the option. What can be done with a built-in method can be done with this one: kill
and resume, shared baselines, evaluate, profile, compare, runner.load.
"""
